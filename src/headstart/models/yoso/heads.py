"""YOSO's heads in PyTorch: masked tokens, classes of texts and tokens, choices, answers.

Legend: B texts, L tokens, D hidden size, V vocabulary or classes, C choices. Masks are (B, L) and 1
keeps.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart import outputs
from headstart.models.yoso.config import YosoConfig
from headstart.models.yoso.inputs import check_mask, chosen, flat_choices
from headstart.models.yoso.pooling import pooled
from headstart.models.yoso.resizing import ResizableScores
from headstart.models.yoso.torch import YosoModel, YosoPreTrainedModel
from headstart.nn.layers import activation, named
from headstart.nn.linear import Linear
from headstart.nn.losses import classification_loss, span_loss, token_loss


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

    def forward(
        self, x: Tensor, mask: Tensor | None = None, input_ids: Tensor | None = None
    ) -> Tensor:
        """x (B, L, D), mask and input_ids (B, L) → (B, V)."""
        x = pooled(x, mask, input_ids, self.pooling, self.separator)  # (B, D), pairs (B, 2 D)
        x = self.act(self.dense(self.dropout(x)))  # the same shape
        return self.out_proj(self.dropout(x))


class YosoForMaskedLM(ResizableScores, YosoPreTrainedModel):
    """YOSO that predicts masked tokens.

    Args:
        config: Shape of the network; with `tie_word_embeddings` the scores' matrix is the tokens'
            vectors.

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

    def init_module(self, module: nn.Module) -> None:
        """As every YOSO network; a matrix that is the tokens' vectors has its values already."""
        if module is self._head.decoder and self.config.tie_word_embeddings:
            nn.init.zeros_(self._head.bias)
        else:
            super().init_module(module)

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
        # (positions, D) with logits_at
        x, labels = chosen(out.last_hidden_state, labels, logits_at)
        logits = self._head(x)  # (B, L, V) or (positions, V)
        loss = None if labels is None else token_loss(logits, labels)
        out = outputs.MaskedLMOutput(loss, logits, out.hidden_states, out.attentions)
        return self.finish(out, return_dict)


class YosoForSequenceClassification(YosoPreTrainedModel):
    """YOSO with a classifier of whole texts.

    Args:
        config: Shape of the network; `num_labels` is the number of classes, and
            `classifier_pooling` what the classifier reads.

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
        out = outputs.SequenceClassifierOutput(loss, logits, out.hidden_states, out.attentions)
        return self.finish(out, return_dict)


class YosoForMultipleChoice(YosoPreTrainedModel):
    """YOSO that chooses between several texts.

    Args:
        config: Shape of the network.

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
        given = (input_ids, attention_mask, token_type_ids, position_ids)
        choices, flat, embeds = flat_choices(given, inputs_embeds)  # 4 × (B · C, L), (B · C, L, D)
        out = self.yoso(
            *flat, head_mask, embeds, output_attentions, output_hidden_states, return_dict=True
        )
        x = F.relu(self.pre_classifier(out.last_hidden_state[:, 0]))  # (B · C, D)
        logits = self.classifier(x).view(-1, choices)  # (B, C)
        loss = None if labels is None else F.cross_entropy(logits, labels.to(logits.device))
        out = outputs.MultipleChoiceModelOutput(loss, logits, out.hidden_states, out.attentions)
        return self.finish(out, return_dict)


class YosoForTokenClassification(YosoPreTrainedModel):
    """YOSO with a classifier of each token.

    Args:
        config: Shape of the network; `num_labels` is the number of classes.

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
        out = outputs.TokenClassifierOutput(loss, logits, out.hidden_states, out.attentions)
        return self.finish(out, return_dict)


class YosoForQuestionAnswering(YosoPreTrainedModel):
    """YOSO that finds the first and the last token of an answer.

    Args:
        config: Shape of the network.

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
        scores = self.qa_outputs(out.last_hidden_state)  # (B, L, 2)
        start, end = (each.contiguous() for each in scores.unbind(-1))  # 2 × (B, L)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = span_loss(start, end, start_positions, end_positions)
        states, attentions = out.hidden_states, out.attentions
        out = outputs.QuestionAnsweringModelOutput(loss, start, end, states, attentions)
        return self.finish(out, return_dict)
