"""The date in a prompt: some chat templates state today's, so that a run would be asked otherwise every day.

Such templates call `strftime_now`, which transformers gives them. A macro of that name before a template takes its
place, with one date for good; it is saved with the run, and read by whatever renders the template.
"""

import json
import re
from datetime import date
from pathlib import Path

from transformers import PreTrainedTokenizerBase

CODES = "aAbBcdeDfFGhHIjmMpSTuUVwWxXyYzZ"  # of strftime; a time is midnight's, in no zone
UNPADDED = "dHIjmMSUVWy"  # those that `%-` takes zeros from
FROZEN = re.compile(r"\{#- The date of this run: (\d{4}-\d\d-\d\d)\b")


def freeze_date(tokenizer: PreTrainedTokenizerBase, begun: Path | None = None) -> None:
    """Let a chat template that asks for the date always be given the same: that of the run, else today's.

    Args:
        begun: folder of a run that goes on, whose checkpoints hold the template that it began with.
    """
    if not _asks(tokenizer.chat_template):
        return
    checkpoints = sorted(begun.glob("checkpoint-*/chat_template.jinja")) if begun else []
    dates = [found[1] for path in checkpoints if (found := FROZEN.match(path.read_text(encoding="utf-8")))]
    day = date.fromisoformat(dates[-1]) if dates else date.today()
    values = {code: day.strftime(f"%{code}") for code in CODES}
    values |= {f"-{code}": str(int(values[code])) for code in UNPADDED} | {"%": "%"}
    filled = "".join(f" | replace('%{code}', {json.dumps(value)})" for code, value in values.items())
    head = f"{{#- The date of this run: {day}, whenever it is asked. -#}}"
    head += f"{{%- macro strftime_now(format) -%}}{{{{ format{filled} }}}}{{%- endmacro -%}}"
    if isinstance(tokenizer.chat_template, str):
        tokenizer.chat_template = head + tokenizer.chat_template
    else:  # several, by name
        tokenizer.chat_template = {name: head + template for name, template in tokenizer.chat_template.items()}
    print(f"prompt: the chat template states the date, which is {day} in this run whenever it is asked")


def _asks(template: str | dict | None) -> bool:
    if isinstance(template, dict):
        return any(map(_asks, template.values()))
    return template is not None and "strftime_now" in template and not FROZEN.match(template)
