"""The files that the fuzzing kept, through the entrances that they were made for."""

import pytest
from fuzz import CORPUS, ENTRANCES, attempt, place


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_files_of_the_fuzzing_are_read_or_refused(entrance, tmp_path):
    files = sorted((CORPUS / entrance).iterdir())
    assert files
    path = place(entrance, tmp_path)
    for file in files:
        attempt(entrance, file.read_bytes(), path)
