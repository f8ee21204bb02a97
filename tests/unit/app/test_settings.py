import pytest

from app.settings import Settings, SettingsError, load_settings, variable


def test_every_setting_is_described():
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_a_setting_comes_from_its_environment_variable(monkeypatch):
    monkeypatch.setenv("LONGWAVE_MAX_BATCH_EVENTS", "17")
    assert load_settings().max_batch_events == 17


def test_an_override_wins_over_the_environment(monkeypatch):
    monkeypatch.setenv("LONGWAVE_WORKERS", "3")
    assert load_settings(workers=2).workers == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("device", "tpu"),
        ("redis_timeout_ms", "0"),
        ("port", "65536"),
        ("workers", "many"),
        ("max_body_bytes", "-1"),
        ("max_future_s", "315360001"),
    ],
)
def test_a_bad_value_is_one_line_that_names_its_variable(monkeypatch, name, value):
    monkeypatch.setenv(variable(name), value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert str(caught.value).startswith(f"LONGWAVE_{name.upper()}: ")
    assert value in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_option_that_is_no_setting_is_refused():
    with pytest.raises(SettingsError, match="LONGWAVE_COLOUR"):
        load_settings(colour="blue")


def test_a_window_of_event_ids_that_is_smaller_than_a_request_is_refused():
    for impossible in ({"dedupe_window": 999}, {"max_batch_events": 1_001}, {"dedupe_window": 1, "max_batch_events": 2}):
        with pytest.raises(SettingsError, match=r"LONGWAVE_MAX_BATCH_EVENTS.*LONGWAVE_DEDUPE_WINDOW"):
            load_settings(**impossible)
    assert load_settings(dedupe_window=0).max_batch_events == 1_000
    assert load_settings(dedupe_window=5, max_batch_events=5).dedupe_window == 5


def test_an_archiver_that_would_look_for_erasures_too_late_is_refused():
    for impossible in (
        {"archive_interval_s": 43_201},
        {"archive_erase_within_s": 119},
        {"archive_interval_s": 61, "archive_erase_within_s": 121},
    ):
        with pytest.raises(SettingsError, match=r"LONGWAVE_ARCHIVE_ERASE_WITHIN_S.*LONGWAVE_ARCHIVE_INTERVAL_S"):
            load_settings(**impossible)
    assert load_settings(archive_interval_s=43_200).archive_erase_within_s == 86_400
    assert load_settings(archive_interval_s=30, archive_erase_within_s=60).archive_interval_s == 30
