"""A profile of an arm's step: which operations its time goes into."""

from torch.profiler import ProfilerActivity, profile

from card_scale.benchmark.clock import clock_of
from card_scale.benchmark.runner import ArmRunner
from card_scale.data.samples import Samples
from card_scale.distributed.device import current_device

PROFILED_STEPS = 2
_ROWS = 30


def step_profile(runner: ArmRunner, batch: Samples) -> str:
    """Return torch.profiler's table of the operations that took most of the device's own time in two steps."""
    device = current_device()
    clock = clock_of(device)
    runner.install()
    runner.step(batch)
    clock.wait()
    activities, column = [ProfilerActivity.CPU], "self_cpu_time_total"
    if device.type == "cuda":
        activities, column = [*activities, ProfilerActivity.CUDA], "self_device_time_total"
    with profile(activities=activities) as profiled:
        for _ in range(PROFILED_STEPS):
            runner.step(batch)
        clock.wait()
    table = profiled.key_averages().table(sort_by=column, row_limit=_ROWS, max_name_column_width=80)
    return f"arm {runner.arm.name}, attention {runner.backend}, {PROFILED_STEPS} steps\n{table}\n"
