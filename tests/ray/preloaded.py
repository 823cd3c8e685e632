"""The imports of the process that commands are forked from: all of the driver and of the in-process worker."""

import deepspeed  # noqa: F401
import peft  # noqa: F401
import ray.data
import ray.train
import ray.train.v2.api.data_parallel_trainer  # noqa: F401
import torch  # noqa: F401
import transformers  # noqa: F401
import trl.trainer.sft_trainer  # noqa: F401
