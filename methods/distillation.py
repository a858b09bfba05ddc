"""Learning from a teacher's probabilities instead of labels alone.

loss = (1 - weight) * cross_entropy + weight * distillation_loss_sum(logits, teacher's, T)
"""

import torch.nn.functional as F
from torch import Tensor


def distillation_loss_sum(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T² · KL(teacher ‖ student) in nats, both softened by T, summed over rows.

    logits, teacher_logits (rows, classes). T² keeps the gradient's size when T changes, for that
    of the softened loss falls as 1/T². Hinton, Vinyals & Dean 2015, section 2.
    """
    student = F.log_softmax(logits.float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    return temperature**2 * F.kl_div(student, teacher, reduction="sum", log_target=True)
