"""Pickles of the newer protocols, which torch's own reader knows no opcodes of: those with code are named as such."""

import io
import pickle
import pickletools
import zipfile

import pytest
import torch
from sana_native.models.files.file_errors import holds_code
from sana_native.models.registry import load_model


class Harmless:
    """Pickled by a call of a function that weights do not need."""

    def __reduce__(self):
        return (print, ("run",))


CODE = "x.pth holds Python objects besides tensors, which are not loaded because they could run code: use the"


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "zipped"])
def test_a_pickle_with_code_is_named_as_such(protocol, zipped, tmp_path, capsys):
    path = tmp_path / "x.pth"
    content = {"weight": torch.ones(2), "hook": Harmless()}
    if zipped:
        torch.save(content, path, pickle_protocol=protocol)
    else:
        path.write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(ValueError, match=CODE):
        load_model("transformer", str(path))
    assert not capsys.readouterr().out


@pytest.mark.parametrize("protocol", [2, 4])
def test_weights_alone_hold_no_code(protocol, tmp_path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "x.pth", pickle_protocol=protocol)
    assert not holds_code(str(tmp_path / "x.pth"))


def test_a_pickle_cut_off_before_any_code_is_called_damaged(tmp_path):
    whole = pickle.dumps({"weight": [1.5] * 100, "hook": Harmless()}, protocol=4)
    first = next(place for opcode, _, place in pickletools.genops(whole) if opcode.name == "STACK_GLOBAL")
    (tmp_path / "x.pth").write_bytes(whole[: first - 30])
    assert not holds_code(str(tmp_path / "x.pth"))
    with pytest.raises(ValueError, match="x.pth is damaged, .*: download it again"):
        load_model("transformer", str(tmp_path / "x.pth"))


def test_an_archive_without_a_pickle_holds_no_code(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "nothing")
    (tmp_path / "x.pth").write_bytes(buffer.getvalue())
    assert not holds_code(str(tmp_path / "x.pth"))
