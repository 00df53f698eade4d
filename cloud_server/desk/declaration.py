"""What a vehicle says of itself when it joins, and holds to for the whole run."""

from __future__ import annotations

from collections.abc import Container

import msgspec

from protocol.messages import Hello
from protocol.plans.adaptation import SubspaceName


class Declaration(msgspec.Struct, frozen=True, kw_only=True):
    """Bundle and frames of one vehicle; the run's state on both sides is of these and no others."""

    encoder: str
    bundle_digest: str
    feature_shape: tuple[int, int, int]
    """C, H, W of one frame's features."""
    image_size: tuple[int, int]
    """Width, height in pixels."""
    frames: dict[str, int]
    """Number of frames of each split."""
    frames_digest: str
    """Of the frames' keys by split, and of the classes of their labels."""
    subspace: SubspaceName = "all"
    """What of its encoder learns where the run's settings don't say."""
    labels: dict[str, dict[str, int]] = {}
    """By split: number of frames by who has made their labels; empty where it has not said."""

    @classmethod
    def of(cls, hello: Hello) -> Declaration:
        """What a hello declares."""
        return cls(
            encoder=hello.encoder,
            bundle_digest=hello.bundle_digest,
            feature_shape=hello.feature_shape,
            image_size=hello.image_size,
            frames=dict(hello.frames),
            frames_digest=hello.frames_digest,
            subspace=hello.subspace,
            labels={split: dict(counts) for split, counts in hello.labels.items()},
        )

    def difference(self, now: Declaration, announced: Container[str] = ()) -> str:
        """What a vehicle that declared this has changed, with what to do; empty where it is the same.

        Bundles of `announced` digests may take the place of the first one, if they are like it from outside.
        """
        if now.bundle_digest != self.bundle_digest and now.bundle_digest in announced:
            for what in ("feature_shape", "image_size", "subspace"):
                found, expected = getattr(now, what), getattr(self, what)
                if found != expected:
                    return (
                        f"came back with an update's bundle whose {what} is {found}, and joined this run "
                        f"with {expected}; export it like the first one"
                    )
        elif now.bundle_digest != self.bundle_digest:
            return (
                f"came back with the bundle {now.encoder} {now.bundle_digest[:12]}, it joined this run with "
                f"{self.encoder} {self.bundle_digest[:12]}; give it that bundle, or start a new run"
            )
        if now.frames != self.frames:
            return (
                f"came back with other frames ({_counts(now.frames)}) than it joined this run with "
                f"({_counts(self.frames)}); give it those frames, or start a new run"
            )
        if now.frames_digest != self.frames_digest:
            return (
                f"came back with as many frames as it joined this run with ({_counts(self.frames)}), but not "
                f"the same ones; give it those frames, or start a new run"
            )
        return ""


def _counts(frames: dict[str, int]) -> str:
    return ", ".join(f"{count} {split}" for split, count in frames.items())
