"""ms-swift's spelling, understood at the edge: flags of `swift pt|sft|rlhf` become ours, or are answered for.

    translate([("tuner_type", ["lora"]), ("torch_dtype", ["bfloat16"])], "sft", "causal_lm", has_eval_rows=False)

`table_*.py` hold one rule for each flag that means something by itself; `together.py` those that are read together;
`whole.py` what the whole command says, with `environment.py` for the variables that `swift` reads.
Flags that are ours already (`--learning_rate`) are not in the tables and pass as they are.
"""

from rayswift.config.swift.other_verbs import VERBS, translate_other
from rayswift.config.swift.rules import Flag, Translation
from rayswift.config.swift.translate import knows, translate
from rayswift.config.swift.whole import complete

__all__ = ["VERBS", "Flag", "Translation", "complete", "knows", "translate", "translate_other"]
