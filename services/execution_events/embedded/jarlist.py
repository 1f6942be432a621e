"""The list of all jars of a Java program, for `JarList.load`:

    python -m execution_events.embedded.jarlist NAME COORDINATE [COORDINATE ...]

A coordinate is Maven's group:artifact:version. Each is resolved on its own; if two need different
versions of an artifact, the version of the coordinate named first is listed. A coordinate that
begins with "=" is listed without its dependencies.
"""

import hashlib
import sys

from execution_events.embedded.jars import Jar


def resolve(coordinate: str) -> list[Jar]:
    """Return the runtime class path of a Maven coordinate, with the jars' checksums."""
    import jgo

    artifacts = jgo.resolve(coordinate.removeprefix("="))
    if coordinate.startswith("="):
        del artifacts[1:]
    return [
        Jar(
            artifact.groupId,
            artifact.artifactId,
            artifact.version,
            hashlib.sha256(artifact.resolve().read_bytes()).hexdigest(),
        )
        for artifact in artifacts
    ]


def render(name: str, coordinates: list[str]) -> str:
    """Return the list as TOML; it begins with the command that printed it."""
    chosen: dict[tuple[str, str], Jar] = {}
    for coordinate in coordinates:
        for jar in resolve(coordinate):
            chosen.setdefault((jar.group, jar.artifact), jar)
    command = " ".join(["python -m execution_events.embedded.jarlist", name, *coordinates])
    lines = sorted(f'"{jar.coordinate}" = "{jar.sha256}"' for jar in chosen.values())
    return "\n".join([f"# {command}", f'name = "{name}"', "", "[jars]", *lines])


if __name__ == "__main__":
    print(render(sys.argv[1], sys.argv[2:]))
