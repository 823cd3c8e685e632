"""The pool follows the rule for measured waiting, in virtual time over simulated engines."""

import asyncio

import numpy as np

from rayswift.engines.pool.autoscale import Rule
from rayswift.engines.pool.patience import Limits
from rayswift.engines.pool.pool import Pool
from rayswift.engines.pool.scaler import Scaler
from rayswift.engines.samples import PolicyVersion, SampleRequest
from tests.support.fake_engine import FakeEngine, FakeSettings
from tests.virtual_time import run

SPEED = FakeSettings(start_s=5, load_s=0.1, step_s=0.05, median_length=100, length_sigma=0.1, max_num_seqs=8)


def test_a_trainer_that_waits_gets_more_engines_and_one_that_does_not_gives_them_back() -> None:
    async def story() -> tuple[int, int]:
        pool = Pool(lambda name: FakeEngine(SPEED), Limits(max_outstanding=10), resume_partial=True)
        pool.scale_to(1)
        scaler = Scaler(Rule(1, 3), pool, places=10)
        scaling = asyncio.create_task(scaler.run())
        await pool.set_weights(PolicyVersion(1, 0), "weights")
        scaler.trainer_waits(True)
        requests = [SampleRequest(str(n), np.arange(4, dtype=np.int32), 200, n) for n in range(600)]
        await asyncio.gather(*pool.sample(requests, 0))
        grown = pool.statistics().serving
        scaler.trainer_waits(False)
        await asyncio.sleep(600)
        shrunk = pool.statistics().serving
        scaling.cancel()
        await pool.close()
        return grown, shrunk

    assert run(story()) == (3, 1)
