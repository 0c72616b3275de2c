"""`anabranch-silo models fetch`: base models come from the Hugging Face hub when a person says so.

The agent never asks the hub for anything. Neither pickled weights nor Python are fetched: what comes cannot run.
"""

import os
import re
import shutil
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from anabranch import durable
from anabranch.errors import AnabranchError, Reason, Refused, Unavailable, plain, wording
from silo_agent.policy import Model, Policy

# Weights, configuration, tokenizers and chat templates.
WANTED = ("*.safetensors", "*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja")
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
AGAIN = "run the same command again: files that have come whole are kept"


@dataclass(frozen=True)
class Fetched:
    name: str  # what the policy calls it
    hub: str
    revision: str
    path: str
    files: int
    bytes: int
    already: bool  # it was here, and the hub was not asked


def fetch(rules: Policy, name: str | None, token: Path | None, proxy: str | None) -> Iterator[Fetched]:
    """The models of the hub that the policy names, or the one it calls `name`; each is there when it is yielded.

    `token`: a file that holds one, instead of the login the library keeps. `proxy`: where the environment has none.
    Raises Refused for what the hub has not or will not give, Unavailable where it cannot be reached or the disk is full.
    """
    if proxy is not None and "https" not in urllib.request.getproxies():
        os.environ["HTTPS_PROXY"] = proxy
    for called, model in _chosen(rules, name):
        already = model.folder.exists()
        if not already:
            _download(model, _secret(token))
        sizes = [path.stat().st_size for path in model.folder.rglob("*") if path.is_file()]
        place = str(model.hub), str(model.revision), str(model.folder)
        yield Fetched(called, *place, len(sizes), sum(sizes), already)


def _chosen(rules: Policy, name: str | None) -> list[tuple[str, Model]]:
    if name is None:
        chosen = [(called, one) for called, one in sorted(rules.models.items()) if one.hub is not None]
        if not chosen:
            add = "add [models.NAME] with hub and revision"
            raise Refused(Reason.POLICY, f"policy.toml names no model of the hub: {add}")
        return chosen
    if name not in rules.models:
        raise Refused(
            Reason.POLICY,
            f"policy.toml binds no model {name!r}, it binds {', '.join(sorted(rules.models)) or 'none'}: "
            f"add [models.{name}] with hub and revision",
        )
    if rules.models[name].hub is None:
        raise Refused(Reason.POLICY, f"policy.toml [models.{name}] names a path: there is nothing to fetch")
    return [(name, rules.models[name])]


def _secret(token: Path | None) -> str | None:
    if token is None:
        return None
    try:
        text = token.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(Reason.NOT_FOUND, f"--token-file {token} cannot be read: {wording(error)}") from error
    if not re.fullmatch("[!-~]+", text):  # or the library would quote it in its complaint
        raise Refused(Reason.MALFORMED, f"--token-file {token} does not hold one token and nothing else")
    return text


def _download(model: Model, token: str | None) -> None:
    """Killed before the rename: what has come whole is kept under another name, and the next run goes on with it."""
    try:
        from huggingface_hub import hf_hub_download
    except ModuleNotFoundError as error:
        lacking = f"{error.name} is not installed here: pip install 'anabranch[lora]'"
        raise Refused(Reason.NOT_FOUND, lacking) from error
    part = model.folder.with_name(f"{model.revision}.part")
    with _speaking(model):
        sizes = _listed(model, token)
        durable.make_dir(part)
        _make_sure_of_room(part, sizes)
        # One by one: the library's download of a whole snapshot lists it without any limit of time.
        for file in sizes:
            hf_hub_download(str(model.hub), file, revision=model.revision, local_dir=part, token=token)
    for file, size in sizes.items():
        if (part / file).stat().st_size != size:
            (part / file).unlink()
            raise _away(f"{model.hub}: {file} came with another size than the hub says")
    shutil.rmtree(part / ".cache")  # the library's notes
    for path in part.rglob("*"):
        if path.is_dir():
            durable.sync_dir(path)
            continue
        with path.open("rb") as whole:
            durable.sync(whole.fileno())
    durable.sync_dir(part)
    durable.rename(part, model.folder)


def _listed(model: Model, token: str | None) -> dict[str, int]:
    """Names and bytes of the files to fetch. Raises Refused for a model without safetensors."""
    from huggingface_hub import HfApi, constants

    found = HfApi(token=token).model_info(
        str(model.hub),
        revision=model.revision,
        files_metadata=True,
        timeout=constants.HF_HUB_ETAG_TIMEOUT,  # as for each file; without it, none
    )
    sizes = {one.rfilename: one.size or 0 for one in found.siblings or []}
    if not any(name.endswith(".safetensors") for name in sizes):
        pickled = ", ".join(sorted(name for name in sizes if _is_one_of(name, PICKLED))[:3])
        why = (
            f"only {plain(pickled, 200)}: pickled weights can run code and are never fetched"
            if pickled
            else "no weights"
        )
        raise Refused(
            Reason.POLICY,
            f"{model.hub} at {model.revision} has no .safetensors, {why}; take a revision or a model that has",
        )
    for name in sizes:
        if name.startswith("/") or ".." in name.split("/"):
            outside = f"{plain(name, 200)!r} would lie outside the model's folder"
            raise Refused(Reason.MALFORMED, f"{model.hub} at {model.revision}: {outside}")
    return {name: size for name, size in sizes.items() if _is_one_of(name, WANTED)}


def _is_one_of(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _make_sure_of_room(part: Path, sizes: dict[str, int]) -> None:
    here = sum((part / name).stat().st_size for name in sizes if (part / name).is_file())
    need, free = sum(sizes.values()) - here, shutil.disk_usage(part).free
    if need > free:
        raise _noted(
            f"{part} needs {need / 2**30:.1f} GiB more and {free / 2**30:.1f} GiB are free: make room"
        )


@contextmanager
def _speaking(model: Model) -> Iterator[None]:
    """The library's errors in our words."""
    from huggingface_hub import errors

    at = f"{model.hub} at {model.revision}"
    try:
        yield
    except AnabranchError:
        raise
    except errors.GatedRepoError as error:
        raise Refused(
            Reason.POLICY,
            f"{model.hub} is given to those who accepted its terms: accept them on its page, then `hf auth login` or "
            "--token-file",
        ) from error
    except errors.RevisionNotFoundError as error:
        know = f"`git ls-remote https://huggingface.co/{model.hub}` prints what there is"
        raise Refused(Reason.NOT_FOUND, f"the hub has no {at}: {know}") from error
    except errors.RepositoryNotFoundError as error:
        raise Refused(
            Reason.NOT_FOUND,
            f"the hub has no {model.hub}, or shows it to some: correct hub in policy.toml, or `hf auth login` or "
            "--token-file",
        ) from error
    # The network's come from whichever library the hub's uses in this release; the disk's have a number.
    except Exception as error:
        if (
            isinstance(error, OSError)
            and error.errno
            and not isinstance(error, ConnectionError | TimeoutError)
        ):
            raise
        raise _away(f"{at}: {wording(error)}") from error


def _away(what: str) -> Unavailable:
    return _noted(f"the hub did not give {plain(' '.join(what.split()), 500)}")


def _noted(what: str) -> Unavailable:
    error = Unavailable(what)
    error.add_note(AGAIN)
    return error
