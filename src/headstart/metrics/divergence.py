"""How far the probabilities of one network are from those of another."""

import torch.nn.functional as F
from torch import Tensor


def kl_divergence(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """T² KL(teacher ‖ student) of each image, in nats.

    Args:
        logits: The student's, (B, V).
        taught: The teacher's, (B, V).
        temperature: T; the factor keeps the size of gradients (Hinton et al. 2015).

    Returns:
        (B,), at least 0.
    """
    student = F.log_softmax(logits / temperature, 1)
    teacher = F.log_softmax(taught / temperature, 1)
    each = F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)
    return temperature**2 * each
