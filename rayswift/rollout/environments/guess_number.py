"""A game as an environment: the model guesses a number, and learns after each guess whether it is higher; pure."""

import random


class GuessNumber:
    """A number from 1 to `highest` is to be found in `guesses` guesses.

    Columns of a row that it takes, with defaults: `highest` 31, `guesses` 5, `number`, drawn by chance if it is not
    there: the same for all completions of a prompt. The reward is 1 if the number was found, else 0.
    """

    def reset(self, highest: int = 31, guesses: int = 5, number: int | None = None, seed: int = 0) -> None:
        """Begin a game.

        Args:
            highest: The number is not above it.
            guesses: How many there are.
            number: What is to be found.
            seed: Of the number, where it is not given.
        """
        self.done, self._won = False, False
        self._left = int(guesses)
        self._number = random.Random(seed).randint(1, int(highest)) if number is None else int(number)

    def guess(self, number: int) -> str:
        """Guess the number.

        Args:
            number: The guess.

        Returns:
            right, higher or lower: how the number to be found compares with the guess.
        """
        guessed = int(number)
        self._left -= 1
        self._won = guessed == self._number
        self.done = self._won or self._left <= 0
        if self._won:
            return "right"
        return "higher" if self._number > guessed else "lower"

    def get_reward(self) -> float:
        """Return 1 if the number was found, else 0."""
        return float(self._won)
