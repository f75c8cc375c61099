"""Cases for `benchmarks.on_gpu.process.run_case` that end in every way there is."""

import os
import signal
import time

from benchmarks.on_gpu.report import Report, Setting


def ends(setting: Setting, report: Report) -> None:
    report.note(answer=setting.size(1, 2))


def hangs(setting: Setting, report: Report) -> None:
    print("now it hangs", flush=True)
    child = os.fork()  # a process that the case has started, as a loader of data does
    if child:
        report.note(child=child)
    time.sleep(600)


def dies(setting: Setting, report: Report) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def errs(setting: Setting, report: Report) -> None:
    report.check(1 > 2, "one is not more than two")
    raise ValueError("the first line\nand more")


def lacks_a_library(setting: Setting, report: Report) -> None:
    import no_such_library  # type: ignore[import-not-found]  # noqa: F401


def lacks_our_own(setting: Setting, report: Report) -> None:
    import pretrain.no_such_module  # type: ignore[import-not-found]  # noqa: F401
