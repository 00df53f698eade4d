"""The exceptions of our own, drawn once. Whoever catches one of them knows what it is to become.

BlackfleetError                 the root
├── Mistake                     a person can mend it: one line, exit code 2, no restart
│   ├── SettingError            a setting out of its range; also a ValueError, which msgspec names the key of
│   │   └── DoorError           protocol.doors: nothing that fits is behind a name
│   ├── BrokerUnreachable       protocol.session.transport; also a ConnectionError
│   ├── LocalModelError         protocol.local_model: a folder that holds no usable local network
│   ├── DatasetError            datasets.frame
│   │   └── DatasetMissing      datasets.readers.folder
│   ├── GeneratorFolderError    datasets.generated.write
│   ├── EvaluationError         evaluation.errors
│   ├── PredictionError         evaluation.predictions
│   ├── LatestError             evaluation.latest: a file of a run's latest pictures that holds something else
│   ├── VehicleError            edge_client.errors
│   │   ├── StateError          the state folder is damaged, or belongs to something else
│   │   ├── CloudSilent         nothing was heard of the cloud for too long
│   │   └── TurnRefused         this turn can't be done
│   ├── UpdateError             protocol.update_file: an update that is none, or that nobody signed
│   ├── KeyFault                protocol.update_signature: no key that updates can be signed or checked with
│   ├── SealFault               protocol.seal_files: no key of a run's seals, or another one's
│   ├── OpensslError            protocol.openssl: the program openssl is missing, or says no
│   ├── ModelError              edge_client.predict.card: a file that is no exported model
│   ├── SourceError             edge_client.predict.sources: nothing there that can be predicted
│   ├── OutputError             edge_client.predict.outputs: a video that can't be written here
│   ├── BundleError             edge_client.encoder.bundle
│   ├── HeadError               edge_client.local.head
│   ├── CloudError              cloud_server.errors
│   │   └── OutOfMemory         the network needs more memory than the device has
│   ├── CheckpointError         cloud_server.storage.checkpoint
│   ├── LabelError              cloud_server.storage.label_store
│   └── OperatorError           fleet.errors
│       └── ExportError         fleet.export.errors: the graphs don't compute what the network computes
├── WireError                   from the network: rejected, counted and logged, and nothing has changed
│   ├── CodecError              protocol.codec.deflate: bytes that don't decode
│   ├── WeightsError            protocol.codec.weights: weights of another network
│   ├── PartsError              protocol.session.parts: a payload that is no message and no part of one
│   ├── SealError               protocol.session.seal: a message whose seal is missing or another one's
│   └── RequestError            cloud_server.errors: a request that doesn't fit
├── UncodableError              protocol.codec.quantiser: not finite, or too much for the bytes allowed
├── MessageTooLarge             protocol.session.parts: more than its receiver takes; nothing was sent
├── TooManyWaiting              protocol.session.end: no more is kept for a vehicle that takes in too little
├── CaptureError                edge_client.source.capture: a camera that gives nothing now, and may come back
└── DivergedError               cloud_server.training.trainer: a loss or gradient that is not finite

`ValueError` alone, and every other exception that Python and the libraries bring, is a bug: a traceback and
exit code 1. `OSError` is neither: the machine refuses (a full disk, a missing right), and a process's own
boundary shows it as a mistake (`MENDABLE`).
"""

from __future__ import annotations


class BlackfleetError(Exception):
    """Whatever we raise ourselves that somebody is to catch."""


class Mistake(BlackfleetError):
    """What a person can mend; its text is one line that says the value, what was expected, and what to do."""


class SettingError(Mistake, ValueError):
    """A setting that is out of its range, or contradicts another one."""


class WireError(BlackfleetError):
    """What came over the network does not fit."""


MENDABLE = (Mistake, OSError)
"""What a process ends with in one line and `MISTAKE_CODE`; anything else is a bug."""

MISTAKE_CODE = 2
"""Exit code of a process that a mistake has ended."""
