"""Several teachers, each for the rows with its tags."""

import asyncio
from collections.abc import Sequence

from rayswift.engines.samples import Completion, Prompt
from rayswift.rollout.groups import is_of
from rayswift.rollout.teachers.scoring import Teacher


class TaggedTeachers:
    """See `Teacher`; the tag of a row selects the teacher, and one without tags takes all other rows.

    Args:
        teachers: Each with its tags.
        tag_key: The column that holds a row's tag.
    """

    def __init__(self, teachers: Sequence[tuple[tuple[str, ...], Teacher]], tag_key: str):
        self._by_tag = {tag: teacher for tags, teacher in teachers for tag in tags}
        self._others = next((teacher for tags, teacher in teachers if not tags), None)
        self._teachers, self._tag_key = [teacher for _, teacher in teachers], tag_key

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> Sequence[Completion | str]:
        tag = prompt.columns.get(self._tag_key)
        if tag is None and self._tag_key == "dataset":  # the entry of data.dataset that the row came from
            tag = max((entry for entry in self._by_tag if is_of(prompt, entry)), key=len, default=prompt.id)
        teacher = self._by_tag.get(str(tag), self._others)
        if teacher is None:
            known = ", ".join(sorted(self._by_tag))
            return [f"no teacher for {self._tag_key} = {tag!r}; there are {known}"] * len(completions)
        return await teacher.score(prompt, completions)

    def describe(self) -> str:
        return "; ".join(teacher.describe() for teacher in self._teachers)

    async def close(self) -> None:
        await asyncio.gather(*(teacher.close() for teacher in self._teachers))
