"""What a training run takes over from an exported checkpoint, so that it need not begin with nothing.

`python -m demo.train.warm` puts the exported autoencoder where the other stages look for a trained one.
"""

import sentencepiece
import torch
from safetensors.torch import load_file
from torch import Tensor

from .autoencoder import FOLDER as AUTOENCODER_FOLDER
from .loop import save_atomically
from .pack import CHECKPOINT

from sana_native.models.sana.convert import to_network_layout  # noqa: E402, I001 - importable only after the imports above


def read_part(part: str, checkpoint=CHECKPOINT) -> dict[str, Tensor]:
    """The weights of one part of a checkpoint in float32, under the names of the network's own state."""
    (path,) = (checkpoint / part).glob("*.safetensors")
    weights = {name: tensor.float() for name, tensor in load_file(path).items()}
    return to_network_layout(weights) if part == "transformer" else weights


def move_embedding(
    table: Tensor, old: sentencepiece.SentencePieceProcessor, new: sentencepiece.SentencePieceProcessor
) -> Tensor:
    """The embedding (V, C) of a new tokenizer's pieces: that of the old piece, or the mean of what it was cut into."""
    rows = []
    for index in range(new.get_piece_size()):
        piece = new.id_to_piece(index)
        same = old.piece_to_id(piece)
        parts = [same] if same != old.unk_id() or piece == "<unk>" else old.encode(piece.replace("▁", " "))
        rows.append(table[parts].mean(dim=0))
    return torch.stack(rows)


def main() -> None:
    AUTOENCODER_FOLDER.mkdir(parents=True, exist_ok=True)
    save_atomically(read_part("vae"), AUTOENCODER_FOLDER / "ema.pt")


if __name__ == "__main__":
    main()
