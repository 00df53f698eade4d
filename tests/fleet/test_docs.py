"""What the documents say, as far as a program can check it: tables, options, paths, links, access."""

from __future__ import annotations

import contextlib
import getpass
import os
import queue
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import typer

from edge_client.predict.command import parser as predict_parser
from fleet import broker
from fleet.cli.app import app
from fleet.doctor.command import parser as doctor_parser
from fleet.scenario import Scenario
from protocol import messages
from protocol.codec import tensor as tensor_codec
from protocol.mqtt.connect import connector
from protocol.mqtt.transport import NetworkLoop
from protocol.session import topics
from protocol.session.transport import Delivery, Transport, Will

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
STRUCTURE = ROOT / "docs" / "structure.md"
PROGRAMS = ("cloud_server", "edge_client")


def names(document: Path) -> str:
    return str(document.relative_to(ROOT))


# Tables -----------------------------------------------------------------------------------------------


def table_rows(heading: str, text: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    section = text.split(f"\n{heading}\n", 1)[1]
    lines = section[section.index("\n|") + 1 :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def code_words(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def message_types(union: object) -> list[str]:
    return [str(getattr(member, "__name__", member)) for member in getattr(union, "__args__", (union,))]


def test_topic_table_equals_the_code() -> None:
    documented = [
        (code_words(name), direction, qos, retained, code_words(carried))
        for name, direction, qos, retained, carried in table_rows("## Topics", PROTOCOL)
    ]
    assert documented == [
        (
            [channel.name],
            channel.direction.value,
            str(channel.qos),
            "yes" if channel.retained else "no",
            message_types(channel.message_type),
        )
        for channel in topics.CHANNELS.values()
    ]


def test_answer_of_each_request_equals_the_code() -> None:
    requests = {kind.__name__: kind.answered_by for kind in messages.Request.__subclasses__()}
    assert set(requests.values()) <= {kind.__name__ for kind in messages.Answer.__subclasses__()}
    rows = table_rows("### Vehicle → cloud", PROTOCOL)
    documented = {code_words(name)[0]: code_words(answer)[0] for name, _, _, answer in rows if "`" in answer}
    assert {name: documented[name] for name in requests} == requests


def documented_structs() -> dict[str, tuple[str | None, list[str]]]:
    """Tag and fields by name, with *identity* written out."""
    structs = {}
    for heading in (
        "### Vehicle → cloud",
        "### Cloud → vehicle",
        "### Both ways",
        "### Cloud → observers",
        "### Of what a vehicle sees now",
        "### Inside messages",
    ):
        for name, tag, fields, *_ in table_rows(heading, PROTOCOL):
            written_out = fields.replace("*identity*", "`vehicle` `grant` `turn_id` `step`")
            structs[code_words(name)[0]] = (next(iter(code_words(tag)), None), code_words(written_out))
    return structs


def test_message_tables_equal_the_code() -> None:
    structs = [
        value
        for name, value in vars(messages).items()
        if isinstance(value, type) and issubclass(value, msgspec.Struct) and not name.startswith("_")
        if not value.__subclasses__()  # what others are made of is no message itself
    ]
    assert tensor_codec.EncodedTensor in structs
    assert documented_structs() == {
        struct.__name__: (struct.__struct_config__.tag, list(struct.__struct_encode_fields__))
        for struct in structs
    }


def test_answers_of_requests_are_messages_of_the_cloud() -> None:
    for name, _, _, answer in table_rows("### Vehicle → cloud", PROTOCOL):
        assert set(code_words(answer)) <= set(message_types(messages.Down)), name


# Commands and settings --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """Options by command: `edge_client`, `cloud_server`, `launch`, `dataset generate`, …"""
    known = {}
    for program in PROGRAMS:
        shown = subprocess.run(
            [sys.executable, "-m", program, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        known[program] = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", shown))

    def visit(command: object, path: str) -> None:
        # Typer brings its own copy of click in newer versions: told apart by what they have.
        for name, child in getattr(command, "commands", {}).items():
            visit(child, f"{path} {name}".strip())
        known[path] = {
            option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
        } | {"--help"}  # type: ignore[attr-defined]

    visit(typer.main.get_command(app), "")
    for name, parser in (("predict", predict_parser()), ("doctor", doctor_parser())):
        known[name] |= {option for action in parser._actions for option in action.option_strings}
    script = (ROOT / "deploy" / "install-vehicle.sh").read_text(encoding="utf-8")
    known["install-vehicle.sh"] = set(re.findall(r"^  (--[a-z-]+)", script, re.M))
    return known


def commands_in(text: str) -> Iterator[tuple[str, list[str]]]:
    """(command, arguments) of each command line of ours in the code blocks of a document."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.S | re.M):
        if language not in ("", "sh"):
            continue
        for line in block.replace("\\\n", " ").splitlines():
            yield from commands_of(line)


def commands_of(line: str) -> Iterator[tuple[str, list[str]]]:
    with contextlib.suppress(ValueError):
        words = shlex.split(line, comments=True)
        for program in PROGRAMS:
            image = f"blackfleet-{'vehicle' if program == 'edge_client' else 'cloud'}"
            for mark in (program, image):
                if mark in words and (words[words.index(mark) - 1] == "-m" or words[:2] == ["docker", "run"]):
                    yield program, words[words.index(mark) + 1 :]
        if words and words[0] == "blackfleet":
            nested = len(words) > 1 and words[1] in ("dataset", "encoder", "update")
            yield " ".join(words[1 : 3 if nested else 2]), words[3 if nested else 2 :]


@pytest.mark.parametrize("document", DOCUMENTS, ids=names)
def test_options_named_in_a_document_exist(document: Path, options: dict[str, set[str]]) -> None:
    text = document.read_text(encoding="utf-8")
    inline = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
    for command, arguments in [*commands_in(text), *(c for code in inline for c in commands_of(code))]:
        assert command in options, f"{names(document)}: unknown command blackfleet {command}"
        used = {word.partition("=")[0] for word in arguments if word.startswith("-")}
        assert used <= options[command], f"{names(document)}: {command}"
    every_option = set().union(*options.values())
    for code in inline:
        if code.startswith("--"):
            name = re.split(r"[ =]", code)[0]
            assert name in every_option, f"{names(document)}: {code}"


def test_commands_are_found_in_the_documents() -> None:
    """The check above must not pass by finding nothing."""
    found = {command for document in DOCUMENTS for command, _ in commands_in(document.read_text())}
    assert {"edge_client", "cloud_server", "launch", "evaluate", "dataset generate"} <= found


@pytest.mark.parametrize("part", ["vehicle", "cloud"])
def test_services_start_processes_with_options_that_exist(part: str, options: dict[str, set[str]]) -> None:
    unit = (ROOT / "deploy" / f"blackfleet-{part}.service").read_text(encoding="utf-8")
    [line] = re.findall(r"^ExecStart=([^\\\n]*(?:\\\n[^\\\n]*)*)", unit, flags=re.M)
    [(command, arguments)] = commands_of(line.replace("\\\n", " "))
    assert command == {"vehicle": "edge_client", "cloud": "cloud_server"}[part]
    assert {word for word in arguments if word.startswith("-")} <= options[command]


def setting_names(struct: type, prefix: str = "") -> Iterator[str]:
    for field in msgspec.structs.fields(struct):
        yield prefix + field.name
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from setting_names(field.type, f"{prefix}{field.name}.")


@pytest.mark.parametrize("document", DOCUMENTS, ids=names)
def test_settings_named_in_a_document_exist(document: Path) -> None:
    known = set(setting_names(Scenario))
    parts = "|".join(sorted({name.partition(".")[0] for name in known if "." in name}))
    text = document.read_text(encoding="utf-8")
    for name in re.findall(rf"(?<![\w/])(?:{parts})\.(?!py\b|json\b|md\b|onnx\b)[a-z_]+", text):
        assert name in known, f"{names(document)}: {name}"


# Files ------------------------------------------------------------------------------------------------


def checked_in() -> list[Path]:
    """Every file of the repository."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout: what belongs to the repository is unknown")
    return [Path(name) for name in listing.stdout.split("\0") if name and (ROOT / name).exists()]


def tree_paths() -> list[Path]:
    """The paths that have a line in the tree of docs/structure.md, from its indentation."""
    return [path for path, _ in tree_lines()]


def tree_lines(document: Path = STRUCTURE) -> list[tuple[Path, str]]:
    """Path and description of each line of a document's tree."""
    heading = "The tree" if document.name == "README.md" else "The rooms"
    text = document.read_text(encoding="utf-8")
    block = text.split(f"\n## {heading}\n", 1)[1].split("```")[1]
    lines: list[tuple[Path, str]] = []
    folders: list[str] = []
    for line in block.strip("\n").splitlines():
        indent, (name, *description) = (len(line) - len(line.lstrip())) // 2, line.split()
        folders[indent:] = [name]
        assert description, f"{name} is not described"
        lines.append((Path(*folders), " ".join(description)))
    return lines


def test_every_path_of_the_trees_exists() -> None:
    files = checked_in()
    folders = {parent for file in files for parent in file.parents if parent.name}
    named = tree_paths()
    assert len(named) == len(set(named))
    named += [path for path, _ in tree_lines(ROOT / "README.md")]
    named += [
        path.parent / name
        for path, description in tree_lines()
        for name in re.findall(r"\w+\.py", description)
    ]
    assert [str(path) for path in named if path not in {*files, *folders}] == []


def test_trees_have_a_line_for_every_folder_that_holds_code() -> None:
    """The README names the top folders, docs/structure.md every room."""
    files = checked_in()
    tops = {Path(file.parts[0]) for file in files if len(file.parts) > 1}
    assert tops == {path for path, _ in tree_lines(ROOT / "README.md")}
    folders = {parent for file in files if file.suffix == ".py" for parent in file.parents if parent.name}
    assert sorted(str(folder) for folder in folders - set(tree_paths())) == []


def test_trees_can_be_taken_in_at_a_glance() -> None:
    assert len(tree_lines(ROOT / "README.md")) <= 12
    assert len(tree_paths()) <= 52


@pytest.mark.parametrize("document", DOCUMENTS, ids=names)
def test_relative_links_resolve(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"(?:\]\(|<img src=\")([^)#\"]+)", text):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{names(document)} links to {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=names)
def test_source_files_named_in_a_document_exist(document: Path) -> None:
    for path in re.findall(r"`([\w/]+/[\w.]+\.(?:py|conf|acl|service|sh))`", document.read_text()):
        assert (ROOT / path).is_file(), f"{names(document)} names {path}"


# The access list --------------------------------------------------------------------------------------


@pytest.fixture
def guarded_port(tmp_path: Path) -> Iterator[int]:
    """A mosquitto with deploy/mosquitto.acl, on which a user name needs no password."""
    try:
        broker.choose_kind("mosquitto")
    except ValueError as error:
        pytest.skip(str(error))
    port = broker.free_port()
    config = tmp_path / "mosquitto.conf"
    config.write_text(
        f"listener {port} {broker.HOST}\nallow_anonymous true\nuser {getpass.getuser()}\n"
        f"acl_file {ROOT / 'deploy' / 'mosquitto.acl'}\n"
    )
    search = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    process = subprocess.Popen(["mosquitto", "-c", str(config)], env={**os.environ, "PATH": search})
    try:
        broker.wait_ready(broker.HOST, port, 30)
        yield port
    finally:
        process.terminate()
        process.wait(10)


def test_access_list_lets_users_speak_only_for_themselves(guarded_port: int) -> None:
    """What each user publishes on its own topics arrives where it should, what it forges nowhere."""
    up, down, status = topics.UP, topics.DOWN, topics.STATUS
    heard: queue.Queue[str] = queue.Queue()
    with NetworkLoop() as loop, contextlib.ExitStack() as stack:

        def user(name: str, *subscriptions: str) -> Transport:
            connect = connector(f"mqtt://{name}@{broker.HOST}:{guarded_port}", loop)
            transport = connect(
                f"demo-{name}", Will(topics.topic(status, "demo", name), b"gone"), lambda: None
            )
            stack.callback(transport.close)

            def note(delivery: Delivery) -> None:
                heard.put(f"{name} hears {delivery.topic} {delivery.payload.decode()}")

            for subscription in subscriptions:
                transport.subscribe(subscription, note)
            transport.connect(20)
            return transport

        cloud = user("cloud", topics.topic_filter(up, "demo"), topics.topic_filter(status, "demo"))
        car_1 = user("car-01", topics.topic(down, "demo", "car-01"), topics.topic(status, "demo", "cloud"))
        car_2 = user("car-02", topics.topic(down, "demo", "car-02"))

        for channel in (up, status, down):
            car_2.publish(topics.topic(channel, "demo", "car-01"), b"forged")
        car_2.publish(topics.topic(status, "demo", "cloud"), b"forged")
        car_1.publish(topics.topic(up, "demo", "car-01"), b"features")
        cloud.publish(topics.topic(down, "demo", "car-01"), b"losses")
        cloud.publish(topics.topic(status, "demo", "cloud"), b"here")
        # The last word of car-02: whatever it forged would have arrived before it.
        car_2.publish(topics.topic(up, "demo", "car-02"), b"last")

        expected = {
            "cloud hears blackfleet/v1/demo/car-01/up features",
            "cloud hears blackfleet/v1/demo/car-02/up last",
            "cloud hears blackfleet/v1/demo/cloud/status here",
            "car-01 hears blackfleet/v1/demo/car-01/down losses",
            "car-01 hears blackfleet/v1/demo/cloud/status here",
        }
        assert {heard.get(timeout=20) for _ in expected} == expected
        assert heard.empty()


def test_images_are_built_from_what_they_may_see() -> None:
    seen = {
        line[1:].rstrip("/") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    copies = re.findall(r"^COPY (?!--)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    # `wheel[s]` is a folder that may be missing.
    assert {name for names in copies for name in names.replace("[s]", "s").split()} == seen
