"""YOSO's heads in PyTorch: masked tokens, classes of texts and tokens, choices, answers.

Legend: B texts, L tokens, D hidden size, V vocabulary or classes, C choices. Masks are (B, L) and 1
keeps.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.errors import InputError
from headstart.models.yoso.config import YosoConfig
from headstart.models.yoso.inputs import check_mask
from headstart.models.yoso.torch import YosoModel, YosoPreTrainedModel
from headstart.nn.layers import activation, named
from headstart.nn.linear import Linear
from headstart.nn.losses import classification_loss, mean_cross_entropy
from headstart.outputs import (
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)


class MaskedLMHead(nn.Module):
    """Scores of the vocabulary for each token."""

    def __init__(self, config: YosoConfig) -> None:
        super().__init__()
        D, V = config.hidden_size, config.vocab_size
        self.bias = nn.Parameter(torch.zeros(V))
        norm = nn.LayerNorm(D, config.layer_norm_eps)
        self.transform = named(dense=nn.Linear(D, D), LayerNorm=norm)
        # tied, its matrix is the tokens' vectors
        self.decoder: nn.Linear = Linear(
            D, V, device="meta" if config.tie_word_embeddings else None
        )
        self.act = activation(config.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        """x (…, D) → (…, V)."""
        x = self.act(self.transform["dense"](x))
        return self.decoder(self.transform["LayerNorm"](x))


def mean_of_tokens(x: Tensor, mask: Tensor) -> Tensor:
    """The mean (B, D) of the vectors x (B, L, D) that the mask (B, L) keeps."""
    kept = mask[..., None].to(x.dtype)  # (B, L, 1)
    return (x * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)


class ClassificationHead(nn.Module):
    """Two linear maps of the vector of a text, see `YosoConfig.classifier_pooling`."""

    def __init__(self, config: YosoConfig) -> None:
        super().__init__()
        self.pooling = config.classifier_pooling
        self.separator = config.eos_token_id or 0  # the configuration of "pair" has one
        D = config.hidden_size * (2 if self.pooling == "pair" else 1)
        self.dense = nn.Linear(D, D)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.out_proj = nn.Linear(D, config.num_labels)
        self.act = activation(config.head_act)

    def pool(self, x: Tensor, mask: Tensor | None, input_ids: Tensor | None) -> Tensor:
        """x (B, L, D), mask and input_ids (B, L) → (B, D), or (B, 2 D) for pairs.

        Raises:
            InputError: The second text is wanted and cannot be found: tokens came as vectors.
        """
        if self.pooling == "first":
            return x[:, 0]
        seen = check_mask(mask, x)  # (B, L)
        mask = x.new_ones(x.shape[:2]) if seen is None else seen
        mean = mean_of_tokens(x, mask)  # (B, D)
        if self.pooling == "mean":
            return mean
        if input_ids is None:
            raise InputError(
                "classifier_pooling='pair' finds the second text by its separators; give input_ids"
            )
        # separators up to each token (B, L), of <s> a </s> </s> b </s>
        ends = torch.eq(input_ids, self.separator).cumsum(dim=1)
        first, second = (mean_of_tokens(x, mask * part) for part in (ends == 0, ends > 1))
        return torch.cat([mean, (first - second).abs()], dim=1)  # (B, 2 D)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, input_ids: Tensor | None = None
    ) -> Tensor:
        """x (B, L, D), mask and input_ids (B, L) → (B, V)."""
        pooled = self.pool(x, mask, input_ids)  # (B, D) or (B, 2 D)
        x = self.act(self.dense(self.dropout(pooled)))
        return self.out_proj(self.dropout(x))


def token_loss(logits: Tensor, labels: Tensor, ignore_index: int = -100) -> Tensor:
    """Mean cross-entropy of (…, V) against (…) over the labels that are not `ignore_index`.

    0 where there are none.
    """
    if logits.shape[:-1] != labels.shape:
        raise InputError(
            f"labels have shape {tuple(labels.shape)}; expected {tuple(logits.shape[:-1])}"
        )
    labels = labels.to(logits.device).reshape(-1)
    return mean_cross_entropy(logits.reshape(-1, logits.shape[-1]), labels, ignore_index)


class YosoForMaskedLM(YosoPreTrainedModel):
    """YOSO that predicts masked tokens.

    Example:
        >>> import torch
        >>> from headstart import YosoConfig, YosoForMaskedLM
        >>> config = YosoConfig(
        ...     vocab_size=90, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        ...     intermediate_size=48,
        ... )
        >>> YosoForMaskedLM(config)(torch.tensor([[0, 31, 7, 2]])).logits.shape
        torch.Size([1, 4, 90])
    """

    heads: ClassVar[tuple[str, ...]] = ("cls",)

    def __init__(self, config: YosoConfig) -> None:
        super().__init__(config)
        self.yoso = YosoModel(config)
        self.cls = named(predictions=MaskedLMHead(config))
        self.tie_weights()
        self.post_init()

    @property
    def _head(self) -> MaskedLMHead:
        return self.cls["predictions"]  # type: ignore[return-value]  # a ModuleDict holds any Module

    def tie_weights(self) -> None:
        """Makes the head's two biases one, and its matrix the tokens' vectors where that is so."""
        self._head.decoder.bias = self._head.bias
        if self.config.tie_word_embeddings:
            self._head.decoder.weight = self.get_input_embeddings().weight

    def init_module(self, module: nn.Module) -> None:
        """As every YOSO network; a matrix that is the tokens' vectors has its values already."""
        if module is self._head.decoder and self.config.tie_word_embeddings:
            nn.init.zeros_(self._head.bias)
        else:
            super().init_module(module)

    def get_output_embeddings(self) -> nn.Linear:
        """The linear map that scores the vocabulary."""
        return self._head.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replaces the linear map."""
        self._head.decoder, self._head.bias = new_embeddings, new_embeddings.bias

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None
    ) -> nn.Embedding:
        """Also makes the scores longer or shorter.

        See `YosoPreTrainedModel.resize_token_embeddings`.
        """
        table = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of)
        head, V = self._head, table.num_embeddings
        if len(head.bias) != V:
            head.bias = nn.Parameter(self.longer(head.bias, V, std=0.0))
            head.decoder.weight = nn.Parameter(self.longer(head.decoder.weight, V))
            head.decoder.out_features = V
            self.tie_weights()
        return table

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_at: Tensor | None = None,
    ) -> Any:
        """Scores of the vocabulary at each position. All but `labels` and `logits_at` are
        `YosoModel`'s arguments.

        Args:
            labels: (B, L) tokens; -100 is left out of the loss.
            logits_at: (B, L), true where scores are wanted. The scores of all positions need much
                memory: a large vocabulary for each token.

        Returns:
            `loss` (with labels), `logits` (B, L, V), or (positions, V) in reading order with
            `logits_at`, `hidden_states`, `attentions`.
        """
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds)
        out = self.yoso(*inputs, output_attentions, output_hidden_states, return_dict=True)
        x = out.last_hidden_state
        if logits_at is not None:
            if logits_at.shape != x.shape[:2]:
                raise InputError(
                    f"logits_at has shape {tuple(logits_at.shape)}; expected {tuple(x.shape[:2])}:"
                    " true where scores are wanted"
                )
            # (positions, D), (positions,)
            x, labels = x[logits_at.bool()], None if labels is None else labels[logits_at.bool()]
        logits = self._head(x)  # (B, L, V) or (positions, V)
        loss = None if labels is None else token_loss(logits, labels)
        return self.finish(
            MaskedLMOutput(loss, logits, out.hidden_states, out.attentions), return_dict
        )


class YosoForSequenceClassification(YosoPreTrainedModel):
    """YOSO with a classifier of whole texts.

    Example:
        >>> import torch
        >>> from headstart import YosoConfig, YosoForSequenceClassification
        >>> config = YosoConfig(
        ...     vocab_size=90, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        ...     intermediate_size=48, num_labels=3,
        ... )
        >>> YosoForSequenceClassification(config)(torch.tensor([[0, 31, 7, 2]])).logits.shape
        torch.Size([1, 3])
    """

    heads: ClassVar[tuple[str, ...]] = ("classifier",)

    def __init__(self, config: YosoConfig) -> None:
        super().__init__(config)
        self.yoso = YosoModel(config)
        self.classifier = ClassificationHead(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Scores of the classes. All but `labels` are `YosoModel`'s arguments.

        Args:
            labels: (B,) integers, (B, V) zeros and ones, or (B,) numbers where `num_labels` is 1.

        Returns:
            `loss` (with labels), `logits` (B, V), `hidden_states`, `attentions`.
        """
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds)
        out = self.yoso(*inputs, output_attentions, output_hidden_states, return_dict=True)
        x = out.last_hidden_state  # (B, L, D)
        logits = self.classifier(x, attention_mask, input_ids)  # (B, V)
        loss = None if labels is None else classification_loss(logits, labels, self.config)
        return self.finish(
            SequenceClassifierOutput(loss, logits, out.hidden_states, out.attentions), return_dict
        )


class YosoForMultipleChoice(YosoPreTrainedModel):
    """YOSO that chooses between several texts.

    Example:
        >>> import torch
        >>> from headstart import YosoConfig, YosoForMultipleChoice
        >>> config = YosoConfig(
        ...     vocab_size=90, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        ...     intermediate_size=48,
        ... )
        >>> YosoForMultipleChoice(config)(torch.tensor([[[0, 31, 2], [0, 7, 2]]])).logits.shape
        torch.Size([1, 2])
    """

    heads: ClassVar[tuple[str, ...]] = ("pre_classifier", "classifier")

    def __init__(self, config: YosoConfig) -> None:
        super().__init__(config)
        self.yoso = YosoModel(config)
        self.pre_classifier = nn.Linear(config.hidden_size, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, 1)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """A score for each choice. The inputs are `YosoModel`'s with an axis of choices after the
        first: (B, C, L).

        Args:
            labels: (B,) number of the right choice.

        Returns:
            `loss` (with labels), `logits` (B, C), `hidden_states` and `attentions` of the B · C
            texts.
        """
        given = input_ids if inputs_embeds is None else inputs_embeds
        if given is not None and given.ndim != (3 if inputs_embeds is None else 4):
            expected = (
                "(questions, choices, tokens)"
                if inputs_embeds is None
                else "(questions, choices, tokens, hidden size)"
            )
            raise InputError(f"the inputs have shape {tuple(given.shape)}; expected {expected}")
        choices = 1 if given is None else given.shape[1]
        mask = None if attention_mask is None else torch.as_tensor(attention_mask)  # (B, C, L)
        flat = [
            None if t is None else t.flatten(0, 1)
            for t in (input_ids, mask, token_type_ids, position_ids)
        ]  # (B · C, L)
        embeds = None if inputs_embeds is None else inputs_embeds.flatten(0, 1)  # (B · C, L, D)
        out = self.yoso(
            *flat, head_mask, embeds, output_attentions, output_hidden_states, return_dict=True
        )
        pooled = F.relu(self.pre_classifier(out.last_hidden_state[:, 0]))  # (B · C, D)
        logits = self.classifier(pooled).view(-1, choices)  # (B, C)
        loss = None if labels is None else F.cross_entropy(logits, labels.to(logits.device))
        return self.finish(
            MultipleChoiceModelOutput(loss, logits, out.hidden_states, out.attentions), return_dict
        )


class YosoForTokenClassification(YosoPreTrainedModel):
    """YOSO with a classifier of each token.

    Example:
        >>> import torch
        >>> from headstart import YosoConfig, YosoForTokenClassification
        >>> config = YosoConfig(
        ...     vocab_size=90, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        ...     intermediate_size=48, num_labels=3,
        ... )
        >>> YosoForTokenClassification(config)(torch.tensor([[0, 31, 7, 2]])).logits.shape
        torch.Size([1, 4, 3])
    """

    heads: ClassVar[tuple[str, ...]] = ("classifier",)

    def __init__(self, config: YosoConfig) -> None:
        super().__init__(config)
        self.yoso = YosoModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Scores of the classes at each token. All but `labels` are `YosoModel`'s arguments.

        Args:
            labels: (B, L) classes; -100 and padding are left out of the loss.

        Returns:
            `loss` (with labels), `logits` (B, L, V), `hidden_states`, `attentions`.
        """
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds)
        out = self.yoso(*inputs, output_attentions, output_hidden_states, return_dict=True)
        logits = self.classifier(self.dropout(out.last_hidden_state))  # (B, L, V)
        mask = check_mask(attention_mask, out.last_hidden_state)
        if labels is not None and mask is not None:
            labels = labels.masked_fill(mask == 0, -100)
        loss = None if labels is None else token_loss(logits, labels)
        return self.finish(
            TokenClassifierOutput(loss, logits, out.hidden_states, out.attentions), return_dict
        )


class YosoForQuestionAnswering(YosoPreTrainedModel):
    """YOSO that finds the first and the last token of an answer.

    Example:
        >>> import torch
        >>> from headstart import YosoConfig, YosoForQuestionAnswering
        >>> config = YosoConfig(
        ...     vocab_size=90, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        ...     intermediate_size=48,
        ... )
        >>> YosoForQuestionAnswering(config)(torch.tensor([[0, 31, 7, 2]])).start_logits.shape
        torch.Size([1, 4])
    """

    heads: ClassVar[tuple[str, ...]] = ("qa_outputs",)

    def __init__(self, config: YosoConfig) -> None:
        super().__init__(config)
        self.yoso = YosoModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Scores of each token to begin and to end the answer. All but the positions are
        `YosoModel`'s arguments.

        Args:
            start_positions: (B,) first token of the answer; one outside the text is left out of the
                loss.
            end_positions: (B,) last token of the answer.

        Returns:
            `loss` (with both positions), `start_logits` and `end_logits` (B, L), `hidden_states`,
            `attentions`.
        """
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, head_mask, inputs_embeds)
        out = self.yoso(*inputs, output_attentions, output_hidden_states, return_dict=True)
        # 2 × (B, L)
        start, end = (
            each.contiguous() for each in self.qa_outputs(out.last_hidden_state).unbind(-1)
        )
        loss = None
        if start_positions is not None and end_positions is not None:
            L = start.shape[1]
            ends = [
                p.to(start.device).reshape(-1).clamp(0, L) for p in (start_positions, end_positions)
            ]  # L is outside, and ignored
            loss = (token_loss(start, ends[0], L) + token_loss(end, ends[1], L)) / 2
        return self.finish(
            QuestionAnsweringModelOutput(loss, start, end, out.hidden_states, out.attentions),
            return_dict,
        )
