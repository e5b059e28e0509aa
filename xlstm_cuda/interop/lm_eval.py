"""Models of this library in the lm-evaluation-harness (package lm_eval), under the name "xlstm_cuda".

    python -m xlstm_cuda.interop.lm_eval run --model xlstm_cuda --model_args pretrained=FOLDER --tasks hellaswag

is the harness's own command with this model in its registry; in a program, importing this module does that:

    lm_eval.simple_evaluate(model=XLSTMCuda(model, tokenizer=tokenizer), tasks=["hellaswag"])

A recurrent model has no maximum length: texts of any length go through it in parts, with the state handed on. Choices
of one question share the state behind the question, which is computed once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree

from ..models import stream
from ..models.generation.decoding import reorder_state
from .checkpoints import load_large

__all__ = ["XLSTMCuda"]

Item = TypeVar("Item")
Scored = tuple[float, bool]  # log-likelihood, and whether greedy decoding would give the same tokens


@register_model("xlstm_cuda")
class XLSTMCuda(TemplateLM):
    """The harness's view of a language model of this library.

    Args:
        pretrained: a model with `prefill` and `step`, such as xLSTMLMModel or xLSTMLarge, or a folder with a checkpoint
            of xLSTMLarge in any of the layouts that `interop.checkpoints.load_large` reads.
        tokenizer: of transformers, or a folder that has one; None: that of the checkpoint's folder.
        device, dtype: of a model that is read from a folder. The harness's command says "cuda:0" unless it is told
            otherwise: that, and None, are a GPU where there is one and else the CPU.
        batch_size: rows of a call; the harness's "auto" is 8, nothing is tried out.
        chunk_size: tokens of a row that go through the model at once; changes only rounding.
        max_length: None: each text is scored as a whole. Otherwise tokens that a prediction may look back on, as in a
            Transformer: what the harness's own models do, and what published numbers of them mean.
        max_gen_toks: new tokens of generate_until, where a task does not say.

    Raises ValueError without a tokenizer, and for a tokenizer without an eos_token.
    """

    def __init__(
        self,
        pretrained: str | nn.Module,
        tokenizer: Any = None,
        device: str | None = None,
        dtype: str | None = None,
        batch_size: int | str = 8,
        chunk_size: int | str = 2048,
        max_length: int | str | None = None,
        max_gen_toks: int | str = 256,
        **ignored: Any,
    ) -> None:
        super().__init__()
        if isinstance(pretrained, nn.Module):
            self.model: Any = pretrained
        else:
            if device is None or (device.startswith("cuda") and not torch.cuda.is_available()):
                device = "cuda" if torch.cuda.is_available() else "cpu"
            self.model = load_large(pretrained, device=device, dtype=dtype)
            tokenizer = Path(pretrained) if tokenizer is None else tokenizer
        self.tokenizer = _tokenizer(tokenizer)
        self.batch_size = 8 if str(batch_size).startswith("auto") else int(batch_size)
        self.chunk_size = int(chunk_size)
        self.max_length = None if max_length is None else int(max_length)
        self.max_gen_toks = int(max_gen_toks)
        self.model.eval()
        self._device = next(self.model.parameters()).device

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What a text without a context is scored behind."""
        first = self.tokenizer.bos_token_id
        return self.eot_token_id if first is None else int(first)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        options = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
        return str(self.tokenizer.apply_chat_template(chat_history, tokenize=False, **options))

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return list(self.tokenizer.encode(string, add_special_tokens=bool(add_special_tokens)))

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[Scored]:
        """Requests that have a context in common, all of it but its last token, start from one state."""
        found: dict[int, Scored] = {}
        contexts: dict[tuple[int, ...], list[int]] = {}
        texts = [self._within_length(context, continuation) for _, context, continuation in requests]
        for index, (context, _) in enumerate(texts):
            contexts.setdefault(tuple(context), []).append(index)
        for group in _batches(sorted(contexts, key=len), self.batch_size):
            state = self._state_behind([context[:-1] for context in group])
            rows = [(row, index) for row, context in enumerate(group) for index in contexts[context]]
            for part in _batches(rows, self.batch_size):
                which = torch.tensor([row for row, _ in part], device=self._device)
                own = None if state is None else reorder_state(state, which)
                tokens = [texts[index][0][-1:] + texts[index][1] for _, index in part]
                scores = self._score(tokens, own)
                found.update(zip((index for _, index in part), scores, strict=True))
        results = [found[index] for index in range(len(requests))]
        for (strings, _, _), result in zip(requests, results, strict=True):
            if strings is not None:
                self.cache_hook.add_partial("loglikelihood", strings, result)
        return results

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        totals = []
        for (string,) in (request.args for request in requests):
            total = sum(score for score, _ in self._loglikelihood_tokens(self._windows(self.tok_encode(string))))
            self.cache_hook.add_partial("loglikelihood_rolling", (string,), total)
            totals.append(float(total))
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Requests with the same options go through the model together, padded at the left, which leaves no trace."""
        found: dict[int, str] = {}
        alike: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            alike.setdefault(repr(request.args[1]), []).append(index)
        for indices in alike.values():
            for part in _batches(indices, self.batch_size):
                texts = self._continued([requests[index].args[0] for index in part], requests[part[0]].args[1])
                found.update(zip(part, texts, strict=True))
        for index, request in enumerate(requests):
            self.cache_hook.add_partial("generate_until", request.args, found[index])
        return [found[index] for index in range(len(requests))]

    def _within_length(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """With max_length the last tokens only, of which the first is a context."""
        if self.max_length is None or len(context) + len(continuation) <= self.max_length + 1:
            return context, continuation
        kept = (context + continuation)[-(self.max_length + 1) :]
        split = len(kept) - len(continuation)
        return kept[:split], kept[split:]

    def _windows(self, tokens: list[int]) -> list[tuple[None, list[int], list[int]]]:
        """(None, context, tokens to be predicted): one of them, or as many as max_length makes it."""
        if not tokens:
            return []
        if self.max_length is None:
            return [(None, [self.prefix_token_id], tokens)]
        options = {"max_seq_len": self.max_length, "context_len": 1}
        windows = utils.get_rolling_token_windows(tokens, self.prefix_token_id, **options)
        return [(None, *utils.make_disjoint_window(window)) for window in windows]

    @torch.no_grad()
    def _state_behind(self, rows: Sequence[Sequence[int]]) -> Any:
        """Of each row, None where all are empty. Padding at the left leaves no trace: a reset follows it."""
        if not any(rows):
            return None
        ids, mask = self._padded(rows)
        begins = F.pad(mask, (1, 0))[:, :-1] != mask
        state = None
        for part in _batches(range(ids.shape[1]), self.chunk_size):
            now = slice(part[0], part[-1] + 1)
            _, state = self.model.prefill(ids[:, now], state, reset=begins[:, now])
        return _emptied(state, ~mask.any(1))  # rows that are padding alone

    @torch.no_grad()
    def _score(self, rows: Sequence[Sequence[int]], state: Any) -> list[Scored]:
        """Of all tokens of each row but the first, behind the state and what comes before them in the row."""
        longest = max(map(len, rows)) - 1
        ids = torch.zeros(len(rows), longest + 1, dtype=torch.long)
        counted = torch.zeros(len(rows), longest, dtype=torch.bool)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
            counted[row, : len(tokens) - 1] = True
        ids, counted = ids.to(self._device), counted.to(self._device)
        totals, greedy = torch.zeros(len(rows), dtype=torch.float64), torch.ones(len(rows), dtype=torch.bool)
        for part in _batches(range(longest), self.chunk_size):
            now, targets = slice(part[0], part[-1] + 1), ids[:, part[0] + 1 : part[-1] + 2]
            logits, state = self.model(ids[:, now], state, True)
            logits = logits.float()
            scores = -F.cross_entropy(logits.mT, targets, reduction="none")
            totals += scores.double().masked_fill(~counted[:, now], 0).sum(1).cpu()
            greedy &= ((logits.argmax(-1) == targets) | ~counted[:, now]).all(1).cpu()
        return list(zip(totals.tolist(), greedy.tolist(), strict=True))

    def _continued(self, contexts: Sequence[str], options: dict[str, Any]) -> list[str]:
        """New text behind each context, up to the first of the stop strings, looked for at every token."""
        stops = options.get("until") or []
        stops = [stop for stop in ([stops] if isinstance(stops, str) else stops) if stop]
        sampling: dict[str, Any] = {"temperature": 0.0}
        temperature = options.get("temperature", 1.0 if options.get("do_sample") else 0.0)
        if options.get("do_sample", True) and temperature > 0:
            sampling = {name: options[name] for name in ("temperature", "top_k", "top_p") if options.get(name)}
        ids, mask = self._padded([self.tok_encode(context) or [self.prefix_token_id] for context in contexts])
        count = int(options.get("max_gen_toks", self.max_gen_toks))
        tokens: list[list[int]] = [[] for _ in contexts]
        texts, going = [""] * len(contexts), set(range(len(contexts)))
        for column in stream(self.model, ids, count, attention_mask=mask, eos_id=self.eot_token_id, **sampling):
            for row, token in enumerate(column.tolist()):
                if row in going and token != self.eot_token_id:
                    tokens[row].append(token)
                    texts[row] = str(self.tokenizer.decode(tokens[row], skip_special_tokens=True))
                if token == self.eot_token_id or any(stop in texts[row] for stop in stops):
                    going.discard(row)
            if not going:
                break
        for stop in stops:
            texts = [text.partition(stop)[0] for text in texts]
        return texts

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """ids (B, S), each row at the right, and a mask of what is no padding."""
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows], dtype=torch.long)
        first = torch.tensor([longest - len(row) for row in rows])
        return ids.to(self._device), (torch.arange(longest) >= first[:, None]).long().to(self._device)


def _tokenizer(tokenizer: Any) -> Any:
    if tokenizer is None:
        raise ValueError("XLSTMCuda: a model that is built already needs a tokenizer: tokenizer=...")
    if isinstance(tokenizer, (str, Path)):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    if tokenizer.eos_token_id is None:
        raise ValueError("XLSTMCuda: the tokenizer has no eos_token: texts would not end")
    return tokenizer


def _batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _emptied(state: Any, rows: Tensor) -> Any:
    """The state with zeros, the empty state, in these rows."""
    return _pytree.tree_map(lambda s: s.masked_fill(rows.view(-1, *[1] * (s.ndim - 1)), 0), state)


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
