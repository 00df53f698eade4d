"""What every reader of frames on disk shares: finding files, loading by reference."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets.frame import DatasetError, Frame, FrameRef
from datasets.labels import VOID, LabelSpace
from datasets.natural import natural_key
from datasets.readers.image_files import Pixels, decode_ids, decode_instances, decode_rgb

_FAULTS_NAMED = 10


class DatasetMissing(DatasetError):
    """The folder doesn't hold this data set at all."""

    def __init__(self, message: str, *, expected: str) -> None:
        """`expected` says which files or folders make the data set; `message` has it, too."""
        super().__init__(message)
        self.expected = expected


def dataset_missing(what: str, root: Path, expected: str) -> DatasetMissing:
    """`no WHAT in ROOT: expected EXPECTED`."""
    return DatasetMissing(f"no {what} in {root}: expected {expected}", expected=expected)


class FrameFolder:
    """Frames whose pictures and labels are files; a subclass finds them and decodes its labels."""

    def __init__(self, root: Path, label_space: LabelSpace, refs: Iterable[FrameRef]) -> None:
        self.root = root
        self.label_space = label_space
        self.refs: tuple[FrameRef, ...] = tuple(sorted(refs))

    def decode_label(self, path: Path) -> NDArray[np.uint8]:
        """Read a label file as trainIds, uint8 [H, W]: here, one channel of the label space's ids.

        Raises:
            DatasetError: the file is missing, unreadable, or holds unknown ids.
        """
        ids_HW = decode_ids(path)
        try:
            return self.label_space.to_train_ids(ids_HW.astype(np.uint8, copy=False))
        except ValueError as exc:
            raise DatasetError(f"{path}: {exc}") from None

    def load_image(self, ref: FrameRef) -> NDArray[np.uint8]:
        """Read only the picture, uint8 RGB [H, W, 3].

        Raises:
            DatasetError: the file is missing or unreadable.
        """
        return decode_rgb(ref.image_path, labelled=ref.label_path is not None)

    def load_label(self, ref: FrameRef) -> NDArray[np.uint8]:
        """Read only the label, uint8 trainIds [H, W]; all void where the frame has none.

        Raises:
            DatasetError: the file is missing, unreadable, or holds unknown ids.
        """
        if ref.label_path is None:
            return np.full(self.load_image(ref).shape[:2], VOID, np.uint8)
        return self.decode_label(ref.label_path)

    def load(self, ref: FrameRef) -> Frame:
        """Read one frame.

        Raises:
            DatasetError: a file is missing, unreadable, of another size than the picture, or holds
                unknown ids.
        """
        image_HWC = self.load_image(ref)
        if ref.label_path is None:
            label_HW = np.full(image_HWC.shape[:2], VOID, np.uint8)
        else:
            label_HW = self.decode_label(ref.label_path)
            _check_size(ref.label_path, label_HW, image_HWC)
        instance_HW = None
        if ref.instance_path is not None:
            instance_HW = decode_instances(ref.instance_path)
            _check_size(ref.instance_path, instance_HW, image_HWC)
        return Frame(
            image_HWC=image_HWC,
            label_HW=label_HW,
            instance_HW=instance_HW,
            city=ref.city,
            sequence=ref.sequence,
            frame_id=ref.frame_id,
        )


def raise_faults(subject: str, faults: Sequence[str]) -> None:
    """Raise one `DatasetError` that names the first faults and counts them all, if there are any."""
    if not faults:
        return
    named = "; ".join(faults[:_FAULTS_NAMED])
    rest = len(faults) - _FAULTS_NAMED
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    raise DatasetError(f"{subject}: {count}: {named}" + (f"; and {rest} more" if rest > 0 else ""))


def files_by_stem(folder: Path, suffix: str) -> dict[str, Path]:
    """Return the files in `folder` whose names end in `suffix`, by the part before it, sorted by it."""
    files = (
        path for path in folder.iterdir() if path.name.endswith(suffix) and not path.name.startswith(".")
    )
    return {
        path.name.removesuffix(suffix): path
        for path in sorted(files, key=lambda path: natural_key(path.name))
    }


def pair_files(
    images: dict[str, Path], labels: dict[str, Path], faults: list[str]
) -> dict[str, tuple[Path, Path]]:
    """Return image and label by stem where both exist; what lacks the other is added to `faults`."""
    faults += [f"image without label: {images[stem]}" for stem in images.keys() - labels.keys()]
    faults += [f"label without image: {labels[stem]}" for stem in labels.keys() - images.keys()]
    faults.sort()
    return {stem: (image, labels[stem]) for stem, image in images.items() if stem in labels}


def _check_size(path: Path, pixels_HW: Pixels, image_HWC: NDArray[np.uint8]) -> None:
    if pixels_HW.shape != image_HWC.shape[:2]:
        height, width = pixels_HW.shape
        image_height, image_width = image_HWC.shape[:2]
        raise DatasetError(f"{path}: {width}x{height} pixels, but its image has {image_width}x{image_height}")
