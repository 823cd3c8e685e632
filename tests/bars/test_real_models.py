"""SmolLM2, full and LoRA, padded and packed: each task against TRL's own trainer, over ten steps.

Half an hour, so not part of the suite: pytest tests/bars/test_real_models.py
"""

from pathlib import Path

import pytest

from tests.ray.conftest import curve, start
from tests.ray.real_runs import PACKING, TUNERS, assert_same_numbers, plain, run
from tests.support.real_models import smollm2


@pytest.mark.parametrize("tuner", TUNERS)
@pytest.mark.parametrize("packing", PACKING)
@pytest.mark.parametrize("task", ["pt", "sft"])
def test_causal_tasks_equal_plain_trl(task: str, packing: str, tuner: str, tmp_path: Path) -> None:
    """TRL sees the documents of packed rows one by one, padded."""
    ours = run(tmp_path / "run", task, *TUNERS[tuner], *PACKING[packing])
    assert_same_numbers(ours, plain(ours, task))


@pytest.mark.parametrize("tuner", TUNERS)
@pytest.mark.parametrize("task", ["dpo", "orpo", "cpo", "simpo", "kto", "rm"])
def test_preference_tasks_equal_plain_trl(task: str, tuner: str, tmp_path: Path) -> None:
    ours = run(tmp_path / "run", task, *TUNERS[tuner])
    assert_same_numbers(ours, plain(ours, task))


# As `.ci/elsewhere` has them.
KERNELS = {
    "default": {"ATEN_CPU_CAPABILITY": "default"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "one-thread": {"OMP_NUM_THREADS": "1"},
}


@pytest.mark.parametrize("kernels", KERNELS)
def test_engine_and_trainer_agree(kernels: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean over the sampled tokens of each round, in nats; from the second on by weights that were sent."""
    for name, value in KERNELS[kernels].items():
        monkeypatch.setenv(name, value)
    own = ("--model", str(smollm2()), "--eval_strategy", "no", "--eval_on_start", "false", "--report_to", "none")
    small = ("--max_steps", "3", "--global_batch_size", "16", "--save_strategy", "no")
    code, out = start("rlhf", run_dir, "--config", "examples/smollm2_grpo.yaml", *own, *small, as_a_user=True).wait()
    assert code == 0, out
    differences = curve(run_dir, "sampling_logp_difference")
    assert set(differences) == {1, 2, 3}
    assert max(differences.values()) < 1e-4
