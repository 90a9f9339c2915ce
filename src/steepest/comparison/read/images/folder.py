"""Images from a folder that holds a sub-folder a class."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ...errors import InputError
from ..wording import count, listing, show
from .arrays import over_white, scaled, to_bytes
from .raw import RawImages, RawPart, size_of
from .source import SUFFIXES, folders_in, images_in, is_image

TRAIN, TEST, VALIDATION = ("train", "training"), ("test", "testing"), ("val", "valid", "validation")


@dataclass
class _Layout:
    """Class folders of each part, and what is left aside."""

    train: list[Path]
    test: list[Path] | None
    decisions: list[str]
    warnings: list[str]


def read_folder(path: Path, size: int | None = None) -> RawImages:
    """Every png, jpg, jpeg, bmp, gif or webp file of ``class/``, or of ``train/class/`` and ``test/class/``.

    The first frame of an animation; turned as the camera says; transparent ones are laid over white. Images of more
    than 8 bits are scaled by the depth (10, 12, 14 or 16 bits) that holds the largest of their values. Grey if every
    image is.

    Args:
        path: the folder.
        size: height and width to resize to; None asks for images of one size.

    Raises:
        InputError: for a folder without images in class folders, a file that is no image, different sizes.
    """
    try:
        layout = _layout(path)
        files = [
            [f for c in class_folders for f in images_in(c)]
            for class_folders in (layout.train, layout.test)
            if class_folders is not None
        ]
        contents = [_Contents(path, paths, size) for paths in files]
    except OSError as error:
        raise InputError(f"cannot read {show(path, limit=200)}: {error.strerror or error}") from None
    everything = [entry for content in contents for entry in content.entries]
    deep = [image for _, image, _ in everything if image.dtype != np.uint8]
    if deep:
        _, line = to_bytes(deep, f"{show(path.resolve().name)}, images of 16 bits")
        bits = int(line.split()[1]) if line and "bits" in line else 8
        for content in contents:
            content.entries = [(n, i if i.dtype == np.uint8 else scaled(i, bits), c) for n, i, c in content.entries]
        everything = [entry for content in contents for entry in content.entries]
        layout.decisions.append(f"{line}: {len(deep)} of {len(everything)} images")
    if any(content.transparent for content in contents):
        layout.decisions.append(
            f"transparency: {sum(content.transparent for content in contents)} images laid over white"
        )
    grey = sum(e[1].ndim == 2 for e in everything)
    if 0 < grey < len(everything):
        plural = "image is" if grey == 1 else "images are"
        layout.decisions.append(f"channels: 3; {grey} of {len(everything)} {plural} grey, repeated in each channel")
    if size is not None and any(content.resized for content in contents):
        layout.decisions.append(f"resized to {size} x {size}: {sum(content.resized for content in contents)} images")
    _check_sizes(everything)
    parts = [content.stack(colour=grey < len(everything)) for content in contents]
    digest = hashlib.sha256()
    for name, sha in sorted((name, sha) for content in contents for name, sha in content.hashes):
        digest.update(f"{name}\0{sha}\n".encode())
    name = path.resolve().name
    test = parts[1] if len(parts) == 2 else None
    where = f"folder {show(name)}"
    return RawImages(name, parts[0], test, digest.hexdigest(), where, layout.decisions, layout.warnings)


class _Contents:
    """The images of one part: relative name, pixels ``[H, W]`` or ``[H, W, 3]``, class."""

    def __init__(self, root: Path, files: list[Path], size: int | None) -> None:
        self.entries: list[tuple[str, np.ndarray, str]] = []
        self.hashes: list[tuple[str, str]] = []
        self.resized = self.transparent = 0
        for file in files:
            name = file.relative_to(root).as_posix()
            data = file.read_bytes()
            self.hashes.append((name, hashlib.sha256(data).hexdigest()))
            image, transparent = _open(file, name)
            self.transparent += transparent
            if size is not None and image.size != (size, size):
                image = image.resize((size, size), Image.Resampling.BILINEAR)
                self.resized += 1
            self.entries.append((name, np.asarray(image), file.parent.name))

    def stack(self, colour: bool) -> RawPart:
        """All images ``[N, H, W, C]`` and their labels."""
        height, width = self.entries[0][1].shape[:2]
        pixels = np.empty((len(self.entries), height, width, 3 if colour else 1), dtype=np.uint8)
        for row, (_, image, _) in zip(pixels, self.entries):
            row[:] = image[..., None] if image.ndim == 2 else image
        labels = np.empty(len(self.entries), dtype=object)
        labels[:] = [entry[2] for entry in self.entries]
        return RawPart(pixels, labels)


def _open(file: Path, name: str) -> tuple[Image.Image, bool]:
    """The first frame as mode L, RGB, or I (more than 8 bits), and whether something was transparent."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file) as opened:
                image = ImageOps.exif_transpose(opened)
                if image.mode.startswith("I"):  # Pillow would cut, not scale
                    return image.convert("I"), False
                mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
                clear = image.convert("RGBA") if image.has_transparency_data else None
                if clear is None or clear.getextrema()[3] == (255, 255):
                    return image.convert(mode), False
                return Image.fromarray(over_white(np.asarray(clear))).convert(mode), True
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError):
        raise InputError(f"cannot read the image {show(name)}: broken, or not an image") from None


def _check_sizes(entries: list[tuple[str, np.ndarray, str]]) -> None:
    name, first, _ = entries[0]
    for file, image, _ in entries:
        if image.shape[:2] != first.shape[:2]:
            raise InputError(
                f"images differ in size: {show(name)} is {size_of(first.shape[:2])}, {show(file)} is "
                f"{size_of(image.shape[:2])} (height x width); choose --size to resize all"
            )


def _layout(path: Path) -> _Layout:
    if not path.is_dir():
        raise InputError(f"no folder {show(path, limit=200)}")
    folders, decisions, warned = folders_in(path), [], []
    named = {f.name.lower(): f for f in folders if any(map(images_in, folders_in(f)))}
    split_folders = [next((named[n] for n in names if n in named), None) for names in (TRAIN, TEST, VALIDATION)]
    train, test, validation = split_folders
    if train is not None and (test is not None or validation is not None):
        used = [f for f in split_folders if f is not None]
        aside = [f.name for f in folders if f not in used]
        if aside:
            warned.append(f"{count(len(aside), 'folder')} beside the parts not used: {listing(aside)}")
        parts = [_classes(train, warned), _classes(test or validation, warned)]
        if test is not None and validation is not None:
            parts[0] += _classes(validation, warned)
            decisions.append(f"{show(validation.name)} is joined to {show(train.name)}")
        return _Layout(parts[0], parts[1], decisions, warned)
    named_path = show(path.resolve().name)
    classes = _classes(path, warned)
    loose = len(images_in(path))
    if not classes and loose:
        raise InputError(f"folder {named_path} holds {count(loose, 'image')} but no class folders")
    if not classes:
        raise InputError(f"folder {named_path} has no sub-folder with images ({', '.join(sorted(SUFFIXES))})")
    if loose:
        warned.append(f"{count(loose, 'image')} outside the class folders not used")
    return _Layout(classes, None, decisions, warned)


def _classes(path: Path, warned: list[str]) -> list[Path]:
    """The sub-folders that hold images; a line for what they hold besides."""
    classes = [f for f in folders_in(path) if images_in(f)]
    empty = [f.name for f in folders_in(path) if f not in classes]
    if empty:
        warned.append(f"{count(len(empty), 'folder')} without images not used: {listing(empty)}")
    others = [e.name for c in classes for e in sorted(c.iterdir()) if not is_image(e) and not e.name.startswith(".")]
    if others:
        warned.append(f"{count(len(others), 'entry', 'entries')} of class folders not used: {listing(others, limit=3)}")
    return classes
