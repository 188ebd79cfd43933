"""`--max-pixels`: larger images are read where a person trusts them, for one call."""

import os

import pytest
from PIL import Image

from headstart.cli.app import main


def test_max_pixels(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HEADSTART_MAX_PIXELS", raising=False)
    image = tmp_path / "map.png"
    Image.new("1", (300, 100)).save(image)
    codes = []
    for limit in ("29999", "30000"):
        with pytest.raises(SystemExit) as end:
            main(["predict", "bit-mini", str(image), "--max-pixels", limit])
        codes.append(end.value.code)
        printed = capsys.readouterr()
        if limit == "29999":
            assert "map.png" in printed.err and "--max-pixels 30000" in printed.err
        else:
            assert "map.png" in printed.out
    assert codes[0] != 0 and codes[1] == 0
    assert "HEADSTART_MAX_PIXELS" not in os.environ
