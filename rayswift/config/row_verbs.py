"""Configs of the verbs that read a run's rows without training, for each training verb."""

from rayswift.config.schema import (
    DataEncodeConfig,
    DataInspectConfig,
    EncodeSection,
    InspectSection,
    PtConfig,
    RlhfConfig,
    TrainingConfig,
)


class PtEncodeConfig(PtConfig):
    """`rayswift data encode pt`."""

    encode: EncodeSection


class RlhfEncodeConfig(RlhfConfig):
    """`rayswift data encode rlhf`."""

    encode: EncodeSection


class PtInspectConfig(PtConfig):
    """`rayswift data inspect pt`."""

    inspect: InspectSection = InspectSection()


class RlhfInspectConfig(RlhfConfig):
    """`rayswift data inspect rlhf`."""

    inspect: InspectSection = InspectSection()


FOR_TRAINING: dict[str, dict[str, type[TrainingConfig]]] = {
    "data encode": {"pt": PtEncodeConfig, "sft": DataEncodeConfig, "rlhf": RlhfEncodeConfig},
    "data inspect": {"pt": PtInspectConfig, "sft": DataInspectConfig, "rlhf": RlhfInspectConfig},
}
