"""How settings are found, which of two wins, and what a person reads when one is wrong."""

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from coatstream.settings import document
from coatstream.settings.errors import SettingsError
from coatstream.settings.loading import load, parse_override
from coatstream.settings.model import RedisSettings, SettingsTree
from hypothesis import given, settings
from hypothesis import strategies as st

File = Callable[[str], Path]
Secrets = Callable[..., Path]


@pytest.fixture
def file(tmp_path: Path) -> File:
    def write(text: str) -> Path:
        path = tmp_path / "settings.yaml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def secrets(tmp_path: Path) -> Secrets:
    def mount(**files: str) -> Path:
        """A folder as kubelet makes it: names link to ..data, which links to the newest copy."""
        folder = tmp_path / "secrets"
        newest = folder / "..2025_11_22_10_00_00.123456789"
        newest.mkdir(parents=True)
        (folder / "..data").symlink_to(newest.name)
        for name, text in files.items():
            (newest / name).write_text(text)
            (folder / name).symlink_to(f"..data/{name}")
        return folder

    return mount


def load_only(**origins: Any) -> SettingsTree:
    """`load` without the environment and the secrets of the machine that the tests run on."""
    return load(**{"environ": {}, "secrets_dir": None} | origins)


def lines(**origins: Any) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        load_only(**origins)
    assert str(caught.value) == "\n".join(caught.value.lines)
    return caught.value.lines


def line(**origins: Any) -> str:
    [only] = lines(**origins)
    return only


class TestPrecedence:
    def test_nothing_set_gives_the_defaults(self) -> None:
        assert load_only() == SettingsTree()

    def test_a_file_wins_over_the_defaults(self, file: File) -> None:
        tree = load_only(config=file("queue: {stream: from-file}"))

        assert tree.queue.stream == "from-file"
        assert tree.queue.group == "coatstream"

    def test_a_secret_wins_over_the_file(self, file: File, secrets: Secrets) -> None:
        tree = load_only(
            config=file("queue: {stream: from-file, group: from-file}"),
            secrets_dir=secrets(COATSTREAM_QUEUE__STREAM="from-secret"),
        )

        assert (tree.queue.stream, tree.queue.group) == ("from-secret", "from-file")

    def test_the_environment_wins_over_a_secret(self, secrets: Secrets) -> None:
        tree = load_only(
            secrets_dir=secrets(COATSTREAM_QUEUE__STREAM="from-secret", COATSTREAM_QUEUE__GROUP="from-secret"),
            environ={"COATSTREAM_QUEUE__STREAM": "from-environment"},
        )

        assert (tree.queue.stream, tree.queue.group) == ("from-environment", "from-secret")

    def test_the_command_line_wins_over_all(self, file: File, secrets: Secrets) -> None:
        tree = load_only(
            config=file("queue: {stream: from-file, dead_stream: from-file}"),
            secrets_dir=secrets(COATSTREAM_QUEUE__STREAM="from-secret"),
            environ={"COATSTREAM_QUEUE__STREAM": "from-environment", "COATSTREAM_QUEUE__GROUP": "from-environment"},
            overrides={"queue.stream": "from-command-line"},
        )

        queue = tree.queue
        assert (queue.stream, queue.group, queue.dead_stream) == ("from-command-line", "from-environment", "from-file")

    def test_the_command_line_can_set_a_value_back_to_null(self) -> None:
        tree = load_only(environ={"COATSTREAM_MODEL__LABELS": "labels.txt"}, overrides={"model.labels": None})

        assert tree.model.labels is None

    def test_a_list_of_a_higher_origin_replaces_the_lower_one(self, file: File) -> None:
        tree = load_only(
            config=file("cameras: [{name: door, url: 0}, {name: yard, url: 1}]"),
            environ={"COATSTREAM_CAMERAS": '[{"name": "roof", "url": "rtsp://10.0.0.7/1", "fps": 2}]'},
        )

        assert [(camera.name, camera.fps) for camera in tree.cameras] == [("roof", 2.0)]

    def test_the_environment_of_the_process_is_the_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COATSTREAM_MODEL__TOP_K", "3")

        tree = load(secrets_dir=None)

        assert tree.model.top_k == 3


class TestEnvironment:
    def test_a_whole_section_may_be_json_with_single_keys_beside_it(self) -> None:
        tree = load_only(environ={"COATSTREAM_HTTP": '{"host": "::1"}', "COATSTREAM_HTTP__PORT": "0"})

        assert (tree.http.host, tree.http.port) == ("::1", 0)

    def test_a_list_is_json(self) -> None:
        assert load_only(environ={"COATSTREAM_BATCH__PREPARED": "[1, 8]"}).batch.prepared == (1, 8)

    def test_an_empty_variable_counts_as_unset(self, file: File) -> None:
        tree = load_only(
            config=file("redis: {url: 'redis://h'}"), environ={"COATSTREAM_REDIS__URL": "", "COATSTREAM_CAMERAS": ""}
        )

        assert tree.redis.url is not None
        assert tree.redis.url.get_secret_value() == "redis://h"

    def test_variables_of_others_are_ignored(self) -> None:
        assert load_only(environ={"PATH": "/bin", "COAT": "x", "COATSTREAMER": "x"}) == SettingsTree()

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("COATSTREAM_SERVICE_HOST", "10.96.0.7"),
            ("COATSTREAM_SERVICE_PORT", "8080"),
            ("COATSTREAM_SERVICE_PORT_HTTP", "8080"),
            ("COATSTREAM_PORT", "tcp://10.96.0.7:8080"),
            ("COATSTREAM_PORT_8080_TCP", "tcp://10.96.0.7:8080"),
            ("COATSTREAM_PORT_8080_TCP_ADDR", "10.96.0.7"),
            ("COATSTREAM_PORT_8080_TCP_PORT", "8080"),
            ("COATSTREAM_PORT_8080_TCP_PROTO", "tcp"),
            ("COATSTREAM_WORKER_PORT", "tcp://10.96.0.7:8080"),
            ("COATSTREAM_WORKER_METRICS_SERVICE_PORT_HTTP", "8080"),
        ],
    )
    def test_what_kubernetes_injects_for_a_service_is_ignored(self, name: str, value: str) -> None:
        assert load_only(environ={name: value}) == SettingsTree()

    def test_one_underscore_too_few_is_not_taken_for_a_service(self) -> None:
        assert line(environ={"COATSTREAM_HTTP_PORT": "80"}) == (
            "COATSTREAM_HTTP_PORT (environment): no such setting; did you mean COATSTREAM_HTTP__PORT?"
        )

    @pytest.mark.parametrize("name", ["COATSTREAM_QUEU__STREAM", "COATSTREAM_QUEUE__STREEM", "coatstream_queue_stream"])
    def test_a_misspelt_variable_is_refused_with_the_right_one(self, name: str) -> None:
        assert line(environ={name: "x"}) == (
            f"{name.upper()} (environment): no such setting; did you mean COATSTREAM_QUEUE__STREAM?"
        )

    def test_a_variable_like_no_other_is_refused_with_the_pattern(self) -> None:
        assert line(environ={"COATSTREAM_FOO": "x"}) == (
            "COATSTREAM_FOO (environment): no such setting; variables are named COATSTREAM_<SECTION>__<KEY>, and the "
            "sections are redis, queue, queues, results, model, batch, cameras, health, reuse, tags, fleet, events, "
            "pictures, training, http, log, drain, process"
        )

    def test_a_variable_for_one_camera_is_refused_with_the_form_for_all(self) -> None:
        assert line(environ={"COATSTREAM_CAMERAS__0__URL": "rtsp://me:hunter2@host"}) == (
            "COATSTREAM_CAMERAS__0__URL (environment): no such setting; set cameras as a whole: "
            """COATSTREAM_CAMERAS='[{"name": "door", "url": "rtsp://10.0.0.7/stream1"}]'"""
        )

    def test_wrong_json_is_located_and_not_shown(self) -> None:
        assert line(environ={"COATSTREAM_CAMERAS": '[{"url": "rtsp://me:hunter2@host"'}) == (
            "COATSTREAM_CAMERAS (environment): not JSON (line 1, column 34: Expecting ',' delimiter); "
            'give a list such as [{"name": "door", "url": "rtsp://10.0.0.7/stream1"}]'
        )

    @pytest.mark.parametrize("text", ["[" * 100_000, "[" + "9" * 5_000 + "]"])
    def test_json_beyond_the_parser_is_one_line(self, text: str) -> None:
        assert "not JSON (a number is too long, or lists are nested too deeply)" in line(
            environ={"COATSTREAM_BATCH__PREPARED": text}
        )

    def test_a_url_given_to_the_section_is_told_where_it_belongs(self) -> None:
        assert line(environ={"COATSTREAM_REDIS": "redis://me:hunter2@host"}) == (
            "COATSTREAM_REDIS (environment): redis is a section; "
            "set COATSTREAM_REDIS__URL and its like, or a JSON object"
        )


class TestSecrets:
    def test_a_mounted_secret_is_read_without_its_line_end(self, secrets: Secrets) -> None:
        tree = load_only(secrets_dir=secrets(COATSTREAM_REDIS__PASSWORD="hunter2\n"))

        assert tree.redis.password is not None
        assert tree.redis.password.get_secret_value() == "hunter2"

    def test_a_mounted_password_is_read_anew_for_each_connection(self, file: File, secrets: Secrets) -> None:
        folder = secrets(COATSTREAM_REDIS__PASSWORD="hunter2\n")
        sample = file("redis:\n  password_file: null\n")  # a copy of the sample file says so

        for tree in (load_only(secrets_dir=folder), load_only(secrets_dir=folder, config=sample)):
            assert tree.redis.password_file == folder / "COATSTREAM_REDIS__PASSWORD"

    def test_a_password_file_of_the_users_own_choice_is_kept(self, secrets: Secrets) -> None:
        folder = secrets(COATSTREAM_REDIS__PASSWORD="hunter2")

        tree = load_only(secrets_dir=folder, environ={"COATSTREAM_REDIS__PASSWORD_FILE": "/run/other"})

        assert tree.redis.password_file == Path("/run/other")

    @pytest.mark.parametrize(
        ("environ", "password"),
        [
            ({"COATSTREAM_REDIS__PASSWORD": "stronger"}, "stronger"),
            ({"COATSTREAM_REDIS__URL": "redis://:stronger@host"}, "hunter2"),
            ({"COATSTREAM_REDIS__URL": "redis://host?password=stronger"}, "hunter2"),
        ],
    )
    def test_a_mounted_password_that_something_stronger_replaces_is_no_password_file(
        self, secrets: Secrets, environ: dict[str, str], password: str
    ) -> None:
        tree = load_only(secrets_dir=secrets(COATSTREAM_REDIS__PASSWORD="hunter2"), environ=environ)

        assert tree.redis.password is not None
        assert tree.redis.password.get_secret_value() == password
        assert tree.redis.password_file is None

    def test_a_password_within_a_secret_of_the_whole_section_is_no_file(self, secrets: Secrets) -> None:
        tree = load_only(secrets_dir=secrets(COATSTREAM_REDIS='{"password": "hunter2"}'))

        assert tree.redis.password is not None
        assert tree.redis.password_file is None

    def test_cameras_may_be_a_secret(self, secrets: Secrets) -> None:
        tree = load_only(secrets_dir=secrets(COATSTREAM_CAMERAS='[{"name": "door", "url": "rtsp://me:hunter2@host"}]'))

        assert tree.cameras[0].url.get_secret_value() == "rtsp://me:hunter2@host"

    def test_a_missing_folder_is_no_secrets(self, tmp_path: Path) -> None:
        assert load_only(secrets_dir=tmp_path / "absent") == SettingsTree()

    def test_files_of_others_and_empty_ones_are_ignored(self, secrets: Secrets) -> None:
        assert load_only(secrets_dir=secrets(**{"tls.crt": "x", "COATSTREAM_REDIS__PASSWORD": "\n"})) == SettingsTree()

    def test_a_misspelt_file_is_refused_with_the_right_name(self, secrets: Secrets) -> None:
        folder = secrets(COATSTREAM_REDIS__PASWORD="hunter2")

        assert line(secrets_dir=folder) == (
            f"COATSTREAM_REDIS__PASWORD (secrets folder {folder}): no such setting; "
            "did you mean COATSTREAM_REDIS__PASSWORD?"
        )

    def test_a_link_out_of_the_folder_is_refused_rather_than_ignored(self, secrets: Secrets, tmp_path: Path) -> None:
        folder = secrets()
        (tmp_path / "outside").write_text("hunter2")
        (folder / "COATSTREAM_REDIS__PASSWORD").symlink_to(tmp_path / "outside")

        assert line(secrets_dir=folder) == (
            f"COATSTREAM_REDIS__PASSWORD (secrets folder {folder}): not a file inside that folder; put the file there"
        )

    def test_a_file_in_place_of_the_folder_is_one_line(self, file: File) -> None:
        path = file("x")

        assert line(secrets_dir=path) == (
            f"secrets folder {path}: cannot be read (Not a directory); mount a small folder that this user may read"
        )

    def test_a_secret_that_is_not_text_is_one_line(self, secrets: Secrets) -> None:
        folder = secrets()
        (folder / "COATSTREAM_REDIS__PASSWORD").write_bytes(b"\xff\xfe")

        assert line(secrets_dir=folder) == (
            f"secrets folder {folder}: a file is not text in UTF-8; write secrets as plain UTF-8 text"
        )

    def test_a_folder_too_large_is_one_line(self, secrets: Secrets) -> None:
        folder = secrets(big="x" * (document.MAX_BYTES + 1))

        assert "size is above 1048576 bytes" in line(secrets_dir=folder)


class TestFile:
    @pytest.mark.parametrize("text", ["", "# only a comment\n", "{}", "redis:\nqueue:\ncameras:\n"])
    def test_a_file_or_section_that_sets_nothing_gives_the_defaults(self, file: File, text: str) -> None:
        assert load_only(config=file(text)) == SettingsTree()

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "absent.yaml"

        assert line(config=path) == (
            f"file {path}: cannot be read (No such file or directory); give the path of a YAML file"
        )

    def test_a_folder_is_no_file(self, tmp_path: Path) -> None:
        assert line(config=tmp_path) == (
            f"file {tmp_path}: cannot be read (Is a directory); give the path of a YAML file"
        )

    def test_a_file_too_large_is_not_parsed(self, file: File) -> None:
        path = file("#" * (document.MAX_BYTES + 1))

        assert line(config=path) == f"file {path}: larger than 1048576 bytes; is this the right file?"

    @pytest.mark.parametrize("text", ["- a\n- b\n", "just words", "5"])
    def test_a_file_that_is_no_mapping_is_refused(self, file: File, text: str) -> None:
        path = file(text)

        assert line(config=path) == (
            f"file {path}: not a mapping; write settings as `section:` and, indented, `key: value`"
        )

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("redis:\n  url: a: b\n", "line 2, column 9: mapping values are not allowed here"),
            ("redis:\n\turl: x\n", r"line 2, column 1: found character '\t' that cannot start any token"),
            ("redis:\n  url: @x\n", "line 2, column 8: found character '@' that cannot start any token"),
            ("redis:\n  password: !hunter2 x\n", "line 2, column 13: tags (!name) are not allowed"),
            ("batch: {prepared: [1, 8}\n", "line 1, column 24: expected ',' or ']', but got '}'"),
        ],
    )
    def test_wrong_yaml_is_located(self, file: File, text: str, told: str) -> None:
        path = file(text)

        assert line(config=path) == (f"file {path}, {told}; put text that holds : # @ ! & * or quotes into quotes")

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("batch:\n  max_size: 4\n  max_size: 8\n", "line 3, column 3: the key max_size is there twice; keep one"),
            ("redis: {}\nredis: {}\n", "line 2, column 1: the key redis is there twice; keep one"),
            ("on: 1\n", "line 1, column 1: this key is not text; put it in quotes"),
            ("[1]: 1\n", "line 1, column 1: this key is not text; put it in quotes"),
            (
                "cameras: [&a {name: x}, *a]\n",
                "line 1, column 25: aliases (*name) are not allowed; write the value out",
            ),
        ],
    )
    def test_yaml_that_would_be_misread_is_refused(self, file: File, text: str, told: str) -> None:
        path = file(text)

        assert line(config=path) == f"file {path}, {told}"

    def test_a_tag_that_makes_objects_makes_none(self, file: File, tmp_path: Path) -> None:
        target = tmp_path / "made"

        told = line(config=file(f"redis: !!python/object/apply:pathlib.Path.touch [{target}]"))

        assert "tags (!name) are not allowed" in told
        assert not target.exists()

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("[" * 50_000, "nested too deeply; settings have at most four levels"),
            ("queue: {stream: 2024-13-45}", "holds an impossible date or number; put text in quotes"),
            ("redis: '\x00'", "not text in UTF-8; save it as plain UTF-8 text"),
        ],
    )
    def test_yaml_beyond_the_parser_is_one_line(self, file: File, text: str, told: str) -> None:
        path = file(text)

        assert line(config=path) == f"file {path}: {told}"

    def test_an_unknown_key_is_refused_with_the_right_one(self, file: File) -> None:
        path = file("queue: {streem: frames}")

        assert line(config=path) == (
            f"queue.streem (file {path}): no such setting; did you mean queue.stream? "
            "(in the environment: COATSTREAM_QUEUE__STREAM)"
        )

    def test_an_unknown_section_is_refused_with_the_right_one(self, file: File) -> None:
        path = file("bach: {max_size: 4}")

        assert line(config=path) == (
            f"bach (file {path}): no such setting; did you mean batch? (in the environment: COATSTREAM_BATCH__<KEY>)"
        )

    def test_a_key_without_its_section_is_told_the_section(self, file: File) -> None:
        path = file("max_size: 4")

        assert line(config=path) == f"max_size (file {path}): no such setting; did you mean batch.max_size?"

    def test_a_key_like_no_other_is_refused_with_those_there_are(self, file: File) -> None:
        path = file("http: {zzz: 4}")

        assert line(config=path) == (
            f"http.zzz (file {path}): no such setting; http has "
            + ", ".join(SettingsTree.model_fields["http"].annotation.model_fields)  # type: ignore[union-attr]
        )

    def test_an_unknown_key_of_a_camera_is_refused_with_the_right_one(self, file: File) -> None:
        path = file("cameras: [{name: door, url: 0, user: me}]")

        assert line(config=path) == (
            f"cameras.0.user (file {path}): no such setting; did you mean cameras.0.username? "
            "(in the environment: COATSTREAM_CAMERAS as JSON)"
        )

    def test_a_section_that_is_one_value_is_refused_even_under_a_good_variable(self, file: File) -> None:
        path = file("redis: hunter2")

        assert line(config=path, environ={"COATSTREAM_REDIS__URL": "redis://host"}) == (
            f"redis (file {path}): not a section; give its keys: {', '.join(RedisSettings.model_fields)} "
            "(in the environment: COATSTREAM_REDIS__<KEY>)"
        )


class TestWrongValues:
    @pytest.mark.parametrize(
        ("key", "value", "told"),
        [
            ("batch.max_size", 5000, "5000: too large; give a whole number from 1 to 1024"),
            ("batch.max_size", "0", "'0': too small; give a whole number from 1 to 1024"),
            ("batch.max_size", 1.5, "1.5: not a whole number; give a whole number from 1 to 1024"),
            ("batch.max_size", "many", "'many': not a whole number; give a whole number from 1 to 1024"),
            ("batch.max_size", None, "null: not a whole number; give a whole number from 1 to 1024"),
            ("batch.max_size", [1, 2], "[1, 2]: not a whole number; give a whole number from 1 to 1024"),
            ("batch.max_size", {"a": 1}, "a mapping: not a whole number; give a whole number from 1 to 1024"),
            pytest.param(
                "queue.max_bytes",
                1 << 70_000,
                "a huge number: too large; give a whole number from 1 to 536870912",
                id="a number too long to print",
            ),
            ("http.port", date(2025, 11, 22), "a date: not a whole number; give a whole number from 0 to 65535"),
            ("drain.timeout", 0, "0: too small; give a number above 0 and up to 86400"),
            ("drain.timeout", "soon", "'soon': not a number; give a number above 0 and up to 86400"),
            ("drain.timeout", float("nan"), "nan: not a number; give a number above 0 and up to 86400"),
            ("drain.timeout", "NaN", "'NaN': not a number; give a number above 0 and up to 86400"),
            ("batch.max_wait", float("inf"), "inf: too large; give a number from 0 to 60"),
            ("queue.enabled", "maybe", "'maybe': neither true nor false; give true or false"),
            ("queue.enabled", [], "[]: neither true nor false; give true or false"),
            ("queue.stream", "", "'': too short; give text of 1 to 256 characters"),
            ("queue.stream", "x" * 300, f"'{'x' * 80}': too long; give text of 1 to 256 characters"),
            ("model.weights", "", "'': too short; give text that is not empty"),
            ("model.device", "gpu", "'gpu': not known; give auto, cpu, cuda, cuda:<number> or mps"),
            ("log.level", "verbose", "'verbose': not known; give one of debug, info, warning, error"),
            ("log.level", "warn", "'warn': not known; give one of debug, info, warning, error; did you mean warning?"),
            (
                "redis.username",
                7,
                "7: not text; give text, or null (put numbers, dates, yes and no in quotes)",
            ),
            ("model.labels", 7, "7: not text; give text, or null (put numbers, dates, yes and no in quotes)"),
        ],
    )
    def test_a_wrong_value_is_told_with_what_is_right(self, key: str, value: object, told: str) -> None:
        variable = f"COATSTREAM_{key.replace('.', '__').upper()}"
        before, colon, after = told.partition(": ")

        assert line(overrides={key: value}) == (
            f"{key} = {before} (command line){colon}{after} (in the environment: {variable})"
        )

    @pytest.mark.parametrize(
        ("prepared", "told"),
        [
            (
                [4, 1],
                "batch.prepared = [4, 1] (command line): must ascend and end with batch.max_size (8), or be empty",
            ),
            (
                [1, "x"],
                "batch.prepared.1 = 'x' (command line): not a whole number; give a whole number from 1 to 1024",
            ),
            (
                8,
                "batch.prepared = 8 (command line): not a list; give a list, each item a whole number from 1 to 1024",
            ),
        ],
    )
    def test_wrong_prepared_sizes_are_told(self, prepared: object, told: str) -> None:
        assert line(overrides={"batch.prepared": prepared}) == (
            f"{told} (in the environment: COATSTREAM_BATCH__PREPARED as JSON)"
        )

    def test_the_origin_of_a_wrong_value_is_the_one_that_won(self, file: File, secrets: Secrets) -> None:
        path = file("batch: {max_size: 0, max_wait: -1}\nhttp: {port: -1}")
        folder = secrets(COATSTREAM_HTTP__PORT="-2")

        told = lines(config=path, secrets_dir=folder, environ={"COATSTREAM_BATCH__MAX_SIZE": "-3"})

        assert [one.partition("):")[0] for one in told] == [
            "batch.max_size = '-3' (environment",
            f"batch.max_wait = -1 (file {path}",
            f"http.port = '-2' (secrets folder {folder}",
        ]

    def test_a_camera_without_its_url_is_told(self) -> None:
        assert line(overrides={"cameras": [{"name": "door"}]}) == (
            "cameras.0.url (command line): missing; give text (in the environment: COATSTREAM_CAMERAS as JSON)"
        )

    def test_two_cameras_of_one_name_are_told(self) -> None:
        camera = {"name": "door", "url": "rtsp://me:hunter2@host"}

        assert line(overrides={"cameras": [camera, camera]}) == (
            "cameras = a list (command line): camera names must be unique, and door is there twice "
            "(in the environment: COATSTREAM_CAMERAS as JSON)"
        )

    def test_a_camera_by_number_on_the_command_line_is_told_to_give_the_list(self) -> None:
        assert line(overrides={"cameras.0.fps": 2}) == (
            "cameras = a mapping (command line): not a list; give a list such as "
            '[{"name": "door", "url": "rtsp://10.0.0.7/stream1"}] (in the environment: COATSTREAM_CAMERAS as JSON)'
        )

    def test_everything_wrong_is_told_at_once(self, file: File, secrets: Secrets) -> None:
        told = lines(
            config=file("batch: {max_size: 0}\nqueue: {streem: x}"),
            secrets_dir=secrets(COATSTREAM_REDS__URL="x"),
            environ={"COATSTREAM_CAMERAS": "[", "COATSTREAM_FOO": "x"},
            overrides={"log.level": "loud"},
        )

        assert [one.split()[0] for one in told] == [
            "COATSTREAM_REDS__URL",
            "COATSTREAM_CAMERAS",
            "COATSTREAM_FOO",
            "queue.streem",
            "batch.max_size",
            "log.level",
        ]

    def test_a_broken_file_does_not_hide_a_wrong_variable(self, file: File) -> None:
        told = lines(config=file("a: b: c"), environ={"COATSTREAM_HTTP__PORT": "web"})

        assert [one.split()[0] for one in told] == ["file", "http.port"]

    def test_a_flood_of_problems_ends(self, file: File) -> None:
        told = lines(config=file("".join(f"k{number}: 1\n" for number in range(1000))))

        assert len(told) == 51
        assert told[-1] == "and 950 more"

    def test_a_line_end_or_an_escape_in_a_key_stays_in_one_line(self, file: File) -> None:
        told = line(config=file(json.dumps({"queue": {"a\nb\x1b[31m": 1}})))

        assert told.startswith(r"queue.a\nb\x1b[31m (file")


class TestCredentials:
    @pytest.mark.parametrize(
        ("key", "value", "shown"),
        [
            ("redis.url", "http://me:hunter2@host/0", "http://***"),
            ("redis.url", "me:hunter2@host", "***"),
            ("redis.password", ["hunter2"], "***"),
            ("http.port", "redis://me:hunter2@host:6379", "'redis://***@host:6379'"),
            ("http.port", "redis://me:hunt@er2/hunter2@host", "'redis://***@host'"),
            ("http.port", "me:hunter2@host", "'***@host'"),
            ("http.port", "http://host/?password=hunter2", "'http://host/?***'"),
            ("http.port", ["hunter2"], "a list"),
            ("http.port", {"hunter2": "hunter2"}, "a mapping"),
        ],
    )
    def test_a_credential_in_a_wrong_value_is_not_shown(self, key: str, value: object, shown: str) -> None:
        told = line(overrides={key: value})

        assert told.startswith(f"{key} = {shown} (command line): ")
        assert "hunter2" not in told

    @pytest.mark.parametrize(
        "text",
        [
            "redis: {pasword: hunter2}",
            "redis: hunter2",
            "cameras: ['rtsp://me:hunter2@host']",
            "cameras: 'rtsp://me:hunter2@host'",
            "cameras: [{name: door, url: ['hunter2']}]",
            "cameras: {door: 'rtsp://me:hunter2@host'}",
            "redis: {password: *hunter2}",
            "redis: {password: !hunter2 x}",
            "redis: {password: !hunter2!x y}",
            "redis: {password: !hunt'er2 y}",
            "redis: {password: &hunter2 &hunter2 y}",
        ],
    )
    def test_a_credential_in_the_wrong_place_is_not_shown(self, file: File, text: str) -> None:
        told = lines(config=file(text))

        assert "er2" not in "\n".join(told)

    def test_no_trace_of_the_cause_is_printed_with_the_error(self, file: File) -> None:
        with pytest.raises(SettingsError) as caught:
            load_only(config=file("redis: {password: !hunter2 x}"), overrides={"redis.url": "hunter2"})

        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None or caught.value.__suppress_context__


class TestOverrides:
    @pytest.mark.parametrize(
        ("text", "override"),
        [
            ("batch.max_size=8", ("batch.max_size", 8)),
            ("batch.max_wait = 0.5", ("batch.max_wait", 0.5)),
            ("queue.enabled=false", ("queue.enabled", False)),
            ("batch.prepared=[1, 8]", ("batch.prepared", [1, 8])),
            ('cameras=[{"name": "door", "url": "0"}]', ("cameras", [{"name": "door", "url": "0"}])),
            ("model.labels=null", ("model.labels", None)),
            ("redis.password=0123", ("redis.password", "0123")),
            ("redis.password=@a: b #c=d", ("redis.password", "@a: b #c=d")),
            ("log.level=info", ("log.level", "info")),
            ("no.such=@x", ("no.such", "@x")),
        ],
    )
    def test_an_override_is_a_key_and_a_value_as_its_setting_takes_it(
        self, text: str, override: tuple[str, object]
    ) -> None:
        assert parse_override(text) == override

    @pytest.mark.parametrize("text", ["batch.max_size", "=8", " =8", ""])
    def test_an_override_without_a_key_or_a_value_is_refused(self, text: str) -> None:
        with pytest.raises(SettingsError) as caught:
            parse_override(text)

        assert caught.value.lines == ("--set takes KEY=VALUE, for instance --set batch.max_size=8",)

    def test_an_override_that_is_no_yaml_is_refused(self) -> None:
        with pytest.raises(SettingsError) as caught:
            parse_override("batch.prepared=[1,")

        [told] = caught.value.lines
        assert told.startswith("--set batch.prepared, line 1, column 4: expected the node content")

    @pytest.mark.parametrize("key", ["queue.streem", "queue.stream.name", "queue.", "", ".", "queue..stream"])
    def test_an_override_of_no_setting_is_refused(self, key: str) -> None:
        assert len(lines(overrides={key: "x"})) == 1


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates()
SECTIONS = st.sampled_from(list(SettingsTree.model_fields)) | st.text(max_size=8)
KNOWN = st.sampled_from(["url", "stream", "max_size", "prepared", "port", "level", "name", "timeout"])
KEYS = KNOWN | st.text(max_size=8)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3))


def answer(**origins: Any) -> SettingsTree | tuple[str, ...]:
    """What `load` answers: the tree, or the lines of its error. Any other exception is the test's failure."""
    try:
        return load_only(**origins)
    except SettingsError as error:
        return error.lines


def is_an_answer(answered: SettingsTree | tuple[str, ...]) -> bool:
    if isinstance(answered, SettingsTree):
        return True
    return bool(answered) and all(one.isprintable() and "Input should" not in one for one in answered)


unhurried = settings(deadline=None)  # a slow machine is no failure


class TestAnything:
    """Whatever is given, the answer is a SettingsTree or a SettingsError of lines that can be printed."""

    @unhurried
    @given(st.dictionaries(SECTIONS, st.dictionaries(KEYS, VALUES, max_size=3) | VALUES, max_size=4))
    def test_any_mapping_as_yaml(self, tmp_path_factory: pytest.TempPathFactory, values: dict[str, object]) -> None:
        path = tmp_path_factory.getbasetemp() / "any.yaml"
        path.write_text(yaml.safe_dump(values))

        assert is_an_answer(answer(config=path))

    @unhurried
    @given(st.binary(max_size=60) | st.text("redis:[]{}&*!|>%@`'\"- \n#?,<=09.~", max_size=60).map(str.encode))
    def test_any_bytes_as_yaml(self, tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
        path = tmp_path_factory.getbasetemp() / "any.yaml"
        path.write_bytes(text)

        assert is_an_answer(answer(config=path))

    @unhurried
    @given(st.dictionaries(st.builds("{}__{}".format, SECTIONS, KEYS) | SECTIONS, st.text(max_size=20), max_size=3))
    def test_any_variables(self, variables: dict[str, str]) -> None:
        assert is_an_answer(answer(environ={f"COATSTREAM_{name}": value for name, value in variables.items()}))

    @unhurried
    @given(st.dictionaries(st.builds("{}.{}".format, SECTIONS, KEYS) | SECTIONS, VALUES, max_size=3))
    def test_any_overrides(self, overrides: dict[str, object]) -> None:
        assert is_an_answer(answer(overrides=overrides))

    @unhurried
    @given(st.builds("{}.{}={}".format, SECTIONS, KEYS, st.text(max_size=20)))
    def test_any_override_text_that_is_read_can_be_loaded(self, text: str) -> None:
        try:
            key, value = parse_override(text)
        except SettingsError as error:
            answered: SettingsTree | tuple[str, ...] = error.lines
        else:
            answered = answer(overrides={key: value})

        assert is_an_answer(answered)


class TestOverridden:
    def test_a_key_of_the_file_that_loses_against_a_variable_is_named_without_its_value(self, tmp_path: Path) -> None:
        file = tmp_path / "settings.yaml"
        file.write_text("batch: {max_size: 4, max_wait: 1.0}\nredis: {url: 'redis://me:hunter2@a'}\ncameras: []")

        tree = load(
            config=file,
            environ={
                "COATSTREAM_BATCH__MAX_SIZE": "8",
                "COATSTREAM_REDIS__URL": "redis://me:hunter3@b",
                "COATSTREAM_CAMERAS": '[{"name": "door", "url": "0"}]',
                "COATSTREAM_LOG__LEVEL": "debug",
            },
            secrets_dir=None,
        )

        assert tree.overridden == (
            f"redis.url of the file {file} is overridden by COATSTREAM_REDIS__URL (environment)",
            f"batch.max_size of the file {file} is overridden by COATSTREAM_BATCH__MAX_SIZE (environment)",
            f"cameras of the file {file} is overridden by COATSTREAM_CAMERAS (environment)",
        )

    def test_a_secret_file_that_wins_is_named_too(self, tmp_path: Path) -> None:
        (tmp_path / "COATSTREAM_REDIS__PASSWORD").write_text("hunter2")
        file = tmp_path / "settings.yaml"
        file.write_text("redis: {password: hunter1}")

        [line] = load(config=file, environ={}, secrets_dir=tmp_path).overridden

        assert line.startswith(
            f"redis.password of the file {file} is overridden by COATSTREAM_REDIS__PASSWORD (secrets"
        )

    @pytest.mark.parametrize(("written", "variable"), [("true", "True"), ("8080", "8080"), ("'text'", "text")])
    def test_the_same_value_twice_is_no_news(self, tmp_path: Path, written: str, variable: str) -> None:
        key = {"true": "model.embeddings", "8080": "http.port", "'text'": "model.name"}[written]
        section, _, name = key.partition(".")
        file = tmp_path / "settings.yaml"
        file.write_text(f"{section}: {{{name}: {written}}}")

        tree = load(config=file, environ={f"COATSTREAM_{section}__{name}".upper(): variable}, secrets_dir=None)

        assert tree.overridden == ()

    def test_the_command_line_is_meant_to_win_and_is_not_named(self, tmp_path: Path) -> None:
        file = tmp_path / "settings.yaml"
        file.write_text("batch: {max_size: 4}")

        tree = load(config=file, overrides={"batch.max_size": 2}, environ={}, secrets_dir=None)

        assert (tree.batch.max_size, tree.overridden) == (2, ())
