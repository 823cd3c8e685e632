"""Repair of a `generation_config.json` that `transformers` reads but refuses to save."""

from transformers import GenerationConfig, PreTrainedModel

from rayswift.log import logger

# Values of sampling, with their defaults.
_SAMPLING = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 50,
    "min_p": None,
    "top_h": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


def mend(network: PreTrainedModel) -> None:
    """Change the model's generation config so that it can be saved, and log what was changed.

    Sampling values without `do_sample` get `do_sample: true`; beside `do_sample: false` they are dropped. If the config
    is still wrong, only the special tokens are kept.
    """
    config = network.generation_config if network.can_generate() else None
    if config is None or _problem(config) is None:
        return
    first_problem = _problem(config)
    if config.do_sample is None:
        config.do_sample = True
        done = "do_sample: true is added"
    else:
        for name, neutral in _SAMPLING.items():
            setattr(config, name, neutral)
        done = "its sampling values are dropped, as do_sample is false"
    if _problem(config) is not None:
        tokens = {name: value for name, value in config.to_dict().items() if name in _TOKENS and _is_token(value)}
        network.generation_config = GenerationConfig(**tokens)
        done = "only its special tokens are kept"
    logger.warning("generation_config.json of %s: %s; %s", network.name_or_path, first_problem, done)


def _is_token(value: object) -> bool:
    return value is None or isinstance(value, list) or (isinstance(value, int) and value >= 0)


def _problem(config: GenerationConfig) -> str | None:
    """The reason why it cannot be saved, in one line; None: it can."""
    try:
        config.validate(strict=True)
    except ValueError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return next((line for line in lines if line.startswith("- ")), lines[0]).removeprefix("- ")
    return None
