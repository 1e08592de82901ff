"""All that is looked at, in the order of the report."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from dil_cli import hub
from dil_cli.doctor import versions
from dil_cli.doctor.finding import Finding, error, guarded
from dil_cli.errors import DilError


def examine(argv: Sequence[str]) -> Iterator[Finding]:
    """Each finding as soon as it is there.

    Args:
        argv: words of `dil train`, whose config is examined.

    Raises:
        DilError: for words that `dil train` would refuse.
    """
    told_offline = hub.told_offline()
    asking = threading.Thread(target=hub.reachable, daemon=True)
    asking.start()  # while everything else is looked at

    def reachable() -> bool:
        asking.join(2 * hub.TIMEOUT_S)
        return not asking.is_alive() and hub.reachable()

    try:
        from dil_cli.config.arguments import split_argv
        from dil_cli.config.compose import compose_alone

        overrides, _ = split_argv("doctor", argv)
        config, folder = compose_alone("doctor", overrides, argv)
    except DilError:
        raise
    except Exception as wrong:  # torch or Hydra is missing or broken: the versions say more
        yield from guarded("python", versions.python())
        yield from guarded("packages", versions.packages())
        yield error(
            "config", f"nothing runs: {type(wrong).__name__}: {str(wrong).partition(chr(10))[0]}",
            "install what is missing or broken, see packages above; or `make install` in dil's repository",
        )  # fmt: skip
        return
    if folder is not None:
        config.output = str(folder.parent)
    yield from guarded("python", versions.python())
    yield from guarded("packages", versions.packages())
    yield from guarded("extras", versions.extras())
    from dil_cli.config.schema import Device
    from dil_cli.train.ready import pick_device, stay_offline_if_local

    if not reachable():
        hub.work_offline()
    stay_offline_if_local(config.model.path, config.data)
    from dil_cli.doctor import machine, model, services

    yield from guarded("device", machine.devices(config))
    try:
        pick_device(config.device)
    except DilError:
        config.device = Device.auto  # said once; the rest is looked at on the device that is there
    yield from guarded("threads", machine.threads(config))
    yield from guarded("precision", machine.precision(config))
    yield from guarded("products", machine.products(config))
    yield from guarded("hub", services.hub_access(config, told_offline, reachable))
    yield from guarded("data", services.data(config, reachable))
    yield from guarded("model", model.model(config, reachable))
    yield from guarded("disk", model.disk(config))
    yield from guarded("wandb", services.tracker(config))
    yield from guarded("keys", services.keys())
