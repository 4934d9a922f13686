"""inpaint-data text: captions to embeddings, as members of the shards."""

from inpaint_data.commands.outcome import Outcome
from inpaint_data.commands.text_embedding import embed_text
from inpaint_data.encoding.settings import TextModelSettings


def run(
    shards: str | list[str], out: str, text: TextModelSettings, device: str = "auto", caption: str = "txt"
) -> Outcome:
    """Add text embeddings to shards, for whoever encodes images live; for a cache, `cache` takes --text_model itself.

    Args:
        shards: the shards with the captions: a folder, a glob, a brace pattern, a URL, or a list of these
        out: folder for the new shards, other than that of the old ones; created if missing
        device: where they are encoded: auto, cpu, cuda, cuda:1, mps
        caption: the member that is the caption, or a field of one: json:prompt
    """
    summary = embed_text(shards, out, text, device, caption)
    return Outcome(summary.table(), code=int(not summary.ok))
