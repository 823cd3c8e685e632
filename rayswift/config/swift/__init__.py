"""Translation of the flags of `swift pt|sft|rlhf` into ours.

    translate([("tuner_type", ["lora"]), ("torch_dtype", ["bfloat16"])], "sft", "causal_lm", has_eval_rows=False)

`table_*.py` have a rule for each single flag, `combined_flags.py` for flags that are read together, `whole.py` for the
whole command, and `environment.py` for environment variables. Flags with the same name here (`--learning_rate`) are in
no table.
"""

from rayswift.config.swift.other_verbs import VERBS, translate_other
from rayswift.config.swift.rules import Flag, Translation
from rayswift.config.swift.translate import knows, translate
from rayswift.config.swift.whole import complete

__all__ = ["VERBS", "Flag", "Translation", "complete", "knows", "translate", "translate_other"]
