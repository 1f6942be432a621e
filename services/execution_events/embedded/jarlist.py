"""Print the list of all jars that a Java program needs, for `JarList.load`:

    python -m execution_events.embedded.jarlist NAME COORDINATE [COORDINATE ...]

A coordinate is group:artifact:version in Maven's terms. Each is resolved on its own; where two of
them need different versions of an artifact, that of the coordinate named first stands. A
coordinate that begins with "=" is listed without what it depends on.
"""

import hashlib
import sys

from execution_events.embedded.jars import Jar


def resolve(coordinate: str) -> list[Jar]:
    """The runtime class path of a Maven coordinate, with the checksums of what is downloaded."""
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
    chosen: dict[tuple[str, str], Jar] = {}
    for coordinate in coordinates:
        for jar in resolve(coordinate):
            chosen.setdefault((jar.group, jar.artifact), jar)
    command = " ".join(["python -m execution_events.embedded.jarlist", name, *coordinates])
    lines = sorted(f'"{jar.coordinate}" = "{jar.sha256}"' for jar in chosen.values())
    return "\n".join([f"# {command}", f'name = "{name}"', "", "[jars]", *lines])


if __name__ == "__main__":
    print(render(sys.argv[1], sys.argv[2:]))
