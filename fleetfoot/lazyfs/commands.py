"""`fleetfoot lazy`: make an image lazy, and look at what was made."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress_bar import ProgressBar
from rich.table import Table

from fleetfoot.console import err, out
from fleetfoot.errors import FleetfootError
from fleetfoot.lazyfs import nodes, trace
from fleetfoot.lazyfs.artifact import Descriptor, layers_of
from fleetfoot.lazyfs.building import converted, converter
from fleetfoot.lazyfs.compare import differences
from fleetfoot.lazyfs.convert import (
    attach,
    attach_traced,
    forget_trace,
    manifest_of,
    unpack,
    wrong_packs,
)
from fleetfoot.lazyfs.distribution import Access, Reference, Repository
from fleetfoot.lazyfs.picture import LayerRead, draw, strip
from fleetfoot.lazyfs.stores import Layout, Remote, artifact_of
from fleetfoot.lazyfs.table import BLOCK
from fleetfoot.paths import StackPaths, cache_dir
from fleetfoot.registry import Registry
from fleetfoot.stack.inventory import registry_address

if TYPE_CHECKING:
    from fleetfoot.lazyfs.artifact import Artifact, LazyLayer
    from fleetfoot.lazyfs.stores import Store
    from fleetfoot.lazyfs.table import Table as SectorTable

__all__ = ["lazy"]

lazy = typer.Typer(help="Images that start before they are pulled.", no_args_is_help=True)
_SHOWN = 20  # differences in a table that a person reads
_BAR, _STRIP = 12, 48  # characters
_LAYOUT = "oci:"

Image = Annotated[
    str,
    typer.Argument(
        help="HOST[:PORT]/NAME[:TAG][@DIGEST] in a registry, or oci:FOLDER:TAG in an OCI layout.",
        metavar="IMAGE",
    ),
]
Platform = Annotated[str, typer.Option(help="Which, where an image is there for several.")]
Stack = Annotated[
    str,
    typer.Option("--stack", "-s", envvar="STACK", help="Whose registry, if its name is named."),
]
AuthFile = Annotated[
    Path | None,
    typer.Option(
        "--authfile",
        envvar="REGISTRY_AUTH_FILE",
        help="Credentials, as `skopeo login` or `docker login` keeps them.",
    ),
]
Authority = Annotated[
    Path | None, typer.Option("--ca", help="Certificates of the registry's authority.")
]
StartedOn = Annotated[
    str, typer.Option("--node", help="Node on which a container of the image was started.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@lazy.command("convert")
def lazy_convert(
    image: Image,
    platform: Platform = "linux/amd64",
    stack: Stack = "local",
    authfile: AuthFile = None,
    authority: Authority = None,
) -> None:
    """Give an image its lazy form, and attach it: the image itself stays as it is.

    Layers are converted once; a second run changes nothing.
    """
    store, wanted = _store(image, stack, authfile, authority)
    manifest, kind = manifest_of(store, wanted, platform)
    made = converted(store, manifest, kind, _progress)
    changed = attach(store, made)
    size = sum(layer.image.size for layer in made.artifact.layers)
    packed = sum(layer.size for layer in layers_of(manifest))
    err.print(
        f"{len(made.artifact.layers)} layers, {made.fresh} converted now;"
        f" {size / 2**20:.1f} MiB beside {packed / 2**20:.1f} MiB;"
        f" {'attached' if changed else 'was attached already'}",
        highlight=False,
        soft_wrap=True,
    )
    print(made.artifact.descriptor.digest)


def _table(store: Store, lazy_layer: LazyLayer) -> SectorTable:
    return lazy_layer.table_of(store.blob(lazy_layer.table.digest))


@lazy.command("inspect")
def lazy_inspect(
    image: Image,
    platform: Platform = "linux/amd64",
    stack: Stack = "local",
    authfile: AuthFile = None,
    authority: Authority = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Show an image's lazy form."""
    store, wanted = _store(image, stack, authfile, authority)
    manifest, found = _lazy_form(store, wanted, platform)
    sizes = {layer.digest: layer.size for layer in layers_of(manifest)}
    tables = [_table(store, each) for each in found.layers]
    rows: list[dict[str, Any]] = [
        {
            "layer": each.layer,
            "bytes": sizes.get(each.layer, 0),
            "image": each.image.digest,
            "image_bytes": each.image.size,
            "unpacked_bytes": table.length,
            "sectors": table.sector_count,
        }
        for each, table in zip(found.layers, tables, strict=True)
    ]
    if as_json:
        plain = {
            "artifact": found.descriptor.digest,
            "subject": found.subject.digest,
            "converter": found.converter,
            "layers": rows,
        }
        print(json.dumps(plain, indent=1))
        return
    out.print(f"artifact {found.descriptor.digest}", highlight=False, soft_wrap=True)
    out.print(f"of the image {found.subject.digest}", highlight=False, soft_wrap=True)
    out.print(f"made by {found.converter}", highlight=False, soft_wrap=True)
    table = Table("layer", "MiB", "sector image", "MiB", "unpacked MiB", "sectors")
    for row in rows:
        table.add_row(
            row["layer"][:19],
            f"{row['bytes'] / 2**20:.1f}",
            row["image"][:19],
            f"{row['image_bytes'] / 2**20:.1f}",
            f"{row['unpacked_bytes'] / 2**20:.1f}",
            str(row["sectors"]),
        )
    out.print(table)


@lazy.command("verify")
def lazy_verify(
    image: Image,
    platform: Platform = "linux/amd64",
    stack: Stack = "local",
    authfile: AuthFile = None,
    authority: Authority = None,
) -> None:
    """Read all of an image's lazy form, and compare it with its tables."""
    store, wanted = _store(image, stack, authfile, authority)
    manifest, found = _lazy_form(store, wanted, platform)
    problems = []
    if not found.covers([layer.digest for layer in layers_of(manifest)]):
        problems.append("not every layer has a lazy form: the image is pulled as ever")
    for each in found.layers:
        table = _table(store, each)
        with store.open(each.image.digest) as stream:
            problems += [f"{each.layer}: {line}" for line in table.check(stream)]
        err.print(f"{each.layer[:19]}: {table.sector_count} sectors read", highlight=False)
    problems += wrong_packs(store, found)
    _tell(problems, f"{image} is what its tables say")


@lazy.command("diff")
def lazy_diff(
    image: Image,
    platform: Platform = "linux/amd64",
    stack: Stack = "local",
    authfile: AuthFile = None,
    authority: Authority = None,
) -> None:
    """Compare an image's lazy form with the ordinary unpacked tree: bytes and metadata.

    Needs root, and a kernel that mounts EROFS.
    """
    store, wanted = _store(image, stack, authfile, authority)
    manifest, found = _lazy_form(store, wanted, platform)
    forms = {each.layer: each for each in found.layers}
    wanted_layers = {layer.digest for layer in layers_of(manifest)}
    if lacking := sorted(wanted_layers - forms.keys()):
        _tell([f"{digest} has no lazy form" for digest in lacking], "")
    with tempfile.TemporaryDirectory(prefix="diff-", dir=_room()) as folder:
        work = Path(folder)
        layers = unpack(store, manifest, work / "layout", "image", converter(_progress))
        files = []
        for number, layer in enumerate(layers):
            files.append(work / f"{number}.erofs")
            form = forms[layer.digest]
            table = _table(store, form)
            with store.open(form.image.digest) as stream, files[-1].open("wb") as to:
                table.unpack(stream, to)
        problems = list(differences(files, work / "layout", "image", work))
    _tell(problems, f"{image}: the lazy tree is the ordinary one")


@lazy.command("trace")
def lazy_trace(
    image: Image,
    node: StartedOn = "",
    platform: Platform = "linux/amd64",
    stack: Stack = "local",
    authfile: AuthFile = None,
    *,
    authority: Authority = None,
    forget: Annotated[
        bool, typer.Option("--forget", help="Remove what was recorded, instead of recording.")
    ] = False,
) -> None:
    """Record what a start reads, so that nodes fetch it ahead, in that order.

    Takes what containers of the image read on the node so far, since it was first mounted there;
    so ask soon after a start. It replaces what was recorded before.
    """
    if bool(node) == forget:
        raise typer.BadParameter("say either --node or --forget")
    store, wanted = _store(image, stack, authfile, authority)
    _, found = _lazy_form(store, wanted, platform)
    if forget:
        told = "forgotten" if forget_trace(store, found) else "there is none"
        err.print(f"trace of {image}: {told}", highlight=False, soft_wrap=True)
        return
    layers = [each.name for each in found.layers]
    read = nodes.touched(stack, node, layers)
    recorded = trace.dump(read)
    if not trace.parse(recorded):
        raise FleetfootError(
            f"{node} has read nothing of {image}",
            "nothing was recorded",
            f"start a container of it on {node}; `fleetfoot lazy status` shows what it has"
            " (small layers come whole, and are in no trace)",
        )
    larger = [each.name for each in found.layers if not each.comes_whole(_table(store, each))]
    if unseen := nodes.read_from_file(stack, node, larger):
        err.print(
            f"{len(unseen)} of its {len(layers)} layers are complete on {node}: what was first read"
            " of them since then is not known, and not recorded",
            highlight=False,
            soft_wrap=True,
        )
    changed = attach_traced(store, found, recorded)
    blocks = sum(map(len, read.values()))
    err.print(
        f"{blocks} blocks: {'recorded' if changed else 'as was recorded before'}", highlight=False
    )


@lazy.command("touched")
def lazy_touched(
    image: Image,
    node: StartedOn,
    platform: Platform = "linux/amd64",
    stack: Stack = "local",
    authfile: AuthFile = None,
    *,
    authority: Authority = None,
    png: Annotated[
        Path | None, typer.Option(help="Draw it there, with colours for when it was read.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show which parts of an image containers on a node read, since it was first mounted there."""
    store, wanted = _store(image, stack, authfile, authority)
    _, found = _lazy_form(store, wanted, platform)
    read = nodes.touched(stack, node, [each.name for each in found.layers])
    layers = [
        LayerRead(
            each.layer.partition(":")[2][:12],
            _table(store, each).block_count,
            read.get(each.name, []),
        )
        for each in found.layers
    ]
    if png:
        draw(png, layers, f"{image.rpartition('/')[2][:40]} on {node}")
        err.print(f"drawn: {png}", highlight=False, soft_wrap=True)
    if as_json:
        print(json.dumps([asdict(layer) for layer in layers], indent=1))
        return
    table = Table("layer", "MiB", "read", "where", title=f"read on {node}")
    for layer in layers:
        part = 100 * len(layer.touched) / max(layer.blocks, 1)
        size = f"{layer.blocks * BLOCK / 2**20:.1f}"
        table.add_row(layer.name, size, f"{part:.1f} %", strip(layer, _STRIP))
    out.print(table)


@lazy.command("status")
def lazy_status(
    stack: Stack = "local",
    node: Annotated[str, typer.Option(help="One node; all of them otherwise.")] = "",
    *,
    as_json: AsJson = False,
) -> None:
    """Show what nodes have mounted lazily: how much of it is there, and how it is read."""
    found = nodes.statuses(stack, node)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    table = Table("node", "image", "MiB", "here", "", "read by", title="lazy images")
    counts = Table("node", "fetched MiB", "requests", "damaged", "failed reads", "errors")
    for name, said in found.items():
        if "error" in said:
            err.print(f"{name}: {said['error']}", highlight=False, soft_wrap=True)
            continue
        for image in said["images"]:
            ways = sorted({layer["way"] or "nothing yet" for layer in image["layers"]})
            part = 100 * image["present"] // max(image["bytes"], 1)
            size = f"{image['bytes'] / 2**20:.1f}"
            bar = ProgressBar(100, part, width=_BAR)
            table.add_row(name, image["reference"], size, bar, f"{part} %", ", ".join(ways))
        seen = said["counts"]
        counts.add_row(
            name,
            f"{seen.get('bytes_fetched', 0) / 2**20:.1f}",
            f"{seen.get('requests', 0):.0f}",
            f"{sum(seen.get(f'corrupted_{where}', 0) for where in ('cached', 'fetched')):.0f}",
            f"{seen.get('reads_failed', 0):.0f}",
            f"{sum(n for key, n in seen.items() if key.startswith('errors_')):.0f}",
        )
    out.print(table)
    out.print(counts)
    if any("error" in said for said in found.values()):
        raise typer.Exit(1)


def _progress(line: str) -> None:
    err.print(line, highlight=False)


def _store(
    image: str, stack: str, authfile: Path | None, authority: Path | None
) -> tuple[Store, str]:
    if image.startswith(_LAYOUT):
        folder, _, tag = image.removeprefix(_LAYOUT).rpartition(":")
        if not folder:
            raise FleetfootError(f"{image!r} names no image", "", "write oci:FOLDER:TAG")
        return Layout(Path(folder)), tag
    named = Reference.parse(image.removeprefix("docker://"))
    own = _own_registry(named.host, stack) if authfile is None else None
    access = own or Access.of_docker(authfile or _authfile(), named.host, authority)
    return Remote(Repository(access, named.name)), named.wanted


def _own_registry(host: str, stack: str) -> Access | None:
    """Return how builders reach the stack's registry, if that is the one named."""
    made = StackPaths(stack).control_plane()
    if made is None:
        return None
    machine = next(iter(made["children"].get("registry", {}).get("hosts", {})), None)
    if machine is None:
        return None
    address = f"{made['hosts'][machine]['ansible_host']}:5000"
    name = registry_address(stack)
    return Registry(stack, name, address).access() if host in {name, address} else None


def _authfile() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    candidates = [Path(runtime) / "containers/auth.json", Path.home() / ".docker/config.json"]
    return next((path for path in candidates if path.exists()), candidates[0])


def _lazy_form(store: Store, wanted: str, platform: str) -> tuple[bytes, Artifact]:
    manifest, _ = manifest_of(store, wanted, platform)
    digest = Descriptor.of("", manifest).digest
    found = artifact_of(store, digest)
    if found is None:
        raise FleetfootError(
            f"{store} has no lazy form of {wanted} ({digest})",
            "nodes pull the image as ever",
            "make one: `fleetfoot lazy convert`",
        )
    return manifest, found


def _room() -> Path:
    """Return a folder on the disk that has room for images."""
    folder = cache_dir() / "lazy"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _tell(problems: list[str], good: str) -> None:
    for line in problems[:_SHOWN]:
        out.print(line, highlight=False, soft_wrap=True)
    if len(problems) > _SHOWN:
        out.print(f"and {len(problems) - _SHOWN} more", highlight=False)
    if problems:
        raise typer.Exit(1)
    err.print(good, highlight=False, soft_wrap=True)
