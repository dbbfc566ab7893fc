"""Time limits on a real Slurm: the job goes back into the queue, as often as it may.

Beside few other tests: a minute, the shortest limit, has to be enough to get somewhere.
"""

import json

import pandas as pd
import pytest
from cluster_user import Suite, restarts, until

pytestmark = pytest.mark.small_slurm
WORDS = (
    "grid.sizes=[{ d_model = 32 }]",
    "train.batch.tokens=512",
    "launch.checkpoint_seconds=2",
    "launch.slurm.sbatch={ nodelist = 'node0' }",  # another test takes node1 away
)
# Slurm looks twice a minute, and may send the signal half a minute early: 15 to 45 s after the
# start. One that comes before python listens ends the job.
LIMITS = ("launch.slurm.time_min=1", "launch.slurm.signal_seconds=15")


@pytest.mark.timeout(600)
def test_a_time_limit_puts_the_job_back_into_the_queue(suite: Suite) -> None:
    """More horizons than any machine trains within one limit; those that got done are compared."""
    horizons = [256_000 * k for k in range(1, 81)]
    code, out, err = suite.run(
        *WORDS, *LIMITS, f"grid.tokens={horizons}", "launch.slurm.max_requeues=30"
    )
    assert code == 0, (out, err)
    (row, *_) = json.loads(suite("status", "runs/it", "--json")[1])
    job = row["job"]

    def finished() -> set[str]:
        return {path.name for path in suite.sweep().glob("trunks/*/[0-9a-f]*.json")}

    until("a requeue", lambda: restarts(job) >= 1, seconds=240)
    before = finished()
    starts = len(suite.starts())
    until("a run that was done after it", lambda: finished() - before, seconds=240)
    assert suite.starts()[starts] > 0, suite.starts()
    assert suite("cancel", "runs/it")[0] == 0
    assert "this job is timed-out" in suite.logs()
    assert suite("collect", "runs/it")[0] == 0
    found = suite.results()
    done = sorted(found["tokens"])
    assert set(found["status"]) == {"ok"}
    assert len(done) == len(finished())
    whole = suite.whole(*WORDS, f"grid.tokens={done}")
    pd.testing.assert_frame_equal(found, whole, check_exact=True)


def test_requeues_used_up_leave_a_run_that_can_go_on(suite: Suite) -> None:
    longer = (*WORDS, "grid.tokens=[40_960_000]")
    code, out, err = suite.run(*longer, *LIMITS, "launch.slurm.max_requeues=0", "--wait")
    assert code == 1, (out, err)
    assert "time limit" in err
    rows = json.loads(suite("status", "runs/it", "--json")[1])
    assert [row["state"] for row in rows] == ["stopped"]
    assert list(suite.sweep().glob("trunks/*/latest.pt"))
