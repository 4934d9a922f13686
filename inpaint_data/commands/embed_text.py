"""inpaint-data embed-text: captions to embeddings, as members of the shards."""

from inpaint_data.commands.outcome import Outcome
from inpaint_data.commands.text_embedding import embed_text


def run(
    shards: str | list[str], out: str, model: str, batch_size: int = 32, device: str = "auto", caption: str = "txt"
) -> Outcome:
    """Add CLIP text embeddings to shards.

    Args:
        shards: the shards with the captions: a folder, a glob, a brace pattern, a URL, or a list of these
        out: folder for the new shards, other than that of the old ones; created if missing
        model: a CLIP text model or a pipeline of Stable Diffusion 1, 2 or XL, by Hub name or folder
        batch_size: captions encoded at a time
        device: where they are encoded: auto, cpu, cuda, cuda:1, mps
        caption: the member that is the caption, or a field of one: json:prompt
    """
    summary = embed_text(shards, out, model, batch_size, device, caption)
    return Outcome(summary.table(), code=int(not summary.ok))
