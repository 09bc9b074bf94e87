import pytest

from mnx.training.whole_file import whole_file


def test_it_appears_at_the_end(tmp_path):
    path = tmp_path / 'a'
    path.write_text('before')
    with whole_file(path) as file:
        file.write(b'after')
        assert path.read_text() == 'before'
    assert path.read_text() == 'after'
    assert list(tmp_path.iterdir()) == [path]


def test_what_was_before_stays_after_an_error(tmp_path):
    path = tmp_path / 'a'
    path.write_text('before')

    def fail():
        with whole_file(path) as file:
            file.write(b'after')
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == 'before'
    assert list(tmp_path.iterdir()) == [path]
