"""One rank of the policy trainer on invented rounds, in a separate process.

    python -m tests.policy_rank OUT_DIR RANK SIZE PORT FLAGS...

Rank 0 writes OUT_DIR/curve.json: loss, gradient norm and further metrics of each step.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Train three rounds of two steps."""
    out_dir, rank, size, port = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    import torch

    from rayswift.model import tuners, whole
    from rayswift.train.parallel.process_group import join_process_group
    from rayswift.train.spec import Worker
    from tests.policy_runs import Rounds, make_groups, make_spec, make_trainer, tiny_model

    flags = ("--learning_rate", "1e-3", "--num_generations", "4", "--max_steps", "12", *sys.argv[5:])
    spec = make_spec(out_dir, *flags, num_workers=size)
    no_supply: Any = None
    join_process_group(spec, Worker(rank, size, no_supply))
    client = Rounds([make_groups(3, 4, seed=seed) for seed in range(3)], num_steps=2, rank=rank, size=size)
    is_gkd, is_full = spec.config.train.task == "gkd", spec.config.model.tuner == "full"
    teacher = {"teacher": tiny_model(2, hidden_size=48)} if "--model.teacher" in sys.argv else {}
    policy: Any = tiny_model(tie_word_embeddings=not is_gkd)  # a head called separately: DeepSpeed wants its gradient
    if rank == 0:
        policy.save_pretrained(out_dir / "initial")
    if size > 1:
        torch.distributed.barrier()
    for adapter in spec.config.model.adapters:
        policy = whole.put_on(policy, Path(adapter), trains=True)
    trainer = make_trainer(
        spec,
        client,
        policy,
        tiny_model(1) if is_full and not is_gkd else None,
        initial=str(out_dir / "initial"),
        peft_config=tuners.peft_config(spec.config.model),
        **teacher,
    )
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    if rank == 0:
        kept = ("loss", "grad_norm", "entropy", "kl", "reward", "clip_ratio/region_mean", "sampling_logp_difference")
        of_ppo = ("critic/grad_norm", "critic/vf_explained_var", "critic/values_mean", "loss/value_avg", "objective/kl")
        of_teachers = ("teacher_kl", "distillation/student_mass")
        curve = [{name: entry[name] for name in (*kept, *of_ppo, *of_teachers) if name in entry} for entry in steps]
        (out_dir / "curve.json").write_text(json.dumps(curve))


if __name__ == "__main__":
    main()
