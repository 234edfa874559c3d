"""The command `omnid`: the relay, the daemon, or a runner."""

import os
import sys

_USAGE = """\
usage: omnid run        run the daemon in the foreground
       omnid runner     run the commands of a daemon on another host
                        [--link NAME|URL] [--name NAME] [--health]
       omnid mcp        speak MCP on stdin and stdout, for agents
                        [--readonly] [--origin NAME] [--expose TOOL,...]
       omnid config check|show   the config as JSON, without a daemon
       omnid --version  show the version
People use omnictl: `omnictl help`.
"""


def main() -> int:
    """Runs what the arguments ask for and gives the exit code: 2 where that can't be understood."""
    verb, *rest = sys.argv[1:] or [""]
    if verb == "mcp":
        # Before anything else is imported: every session of an agent keeps a relay in memory.
        from omnid import relay

        return relay.main(os.environ, rest)
    if verb == "run":
        from omnid import daemon

        return daemon.main(rest)
    if verb == "runner":
        from omnid import runner

        return runner.main(rest)
    if verb == "config" and rest in (["check"], ["show"]):
        from omnid import daemon

        return daemon.config_without_daemon(rest[0])
    if verb == "worker" and rest[:1] in (["brainstem"], ["gateway"], ["supervisor"]):
        return _work(*rest)
    if verb in {"--version", "-V"}:
        from omnid import __version__

        sys.stdout.write(f"omnid {__version__}\n")
        return 0
    if verb in {"--help", "-h", "help"}:
        sys.stdout.write(_USAGE)
        return 0
    said = f"omnid: there is no `{' '.join(sys.argv[1:])}`\n" if verb else ""
    sys.stderr.write(said + _USAGE)
    return 2


def _work(name: str, *argv: str) -> int:
    """Runs what the daemon starts; a worker has no interpreter of its own where omnid is one binary."""
    if name == "supervisor":
        from omnid.worker import supervisor

        supervisor.main(list(argv))
        return 0
    if name == "brainstem":
        from omnid.worker import brainstem

        return brainstem.main(argv)
    from omnid.worker import gateway

    return gateway.main(argv)


if __name__ == "__main__":
    sys.exit(main())
