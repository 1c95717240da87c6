"""Top-N of users × items, exactly as the model's forward pass would score every pair, but quicker.

Both the experts' and the gates' first layers are linear in the two sides of a pair. What a user gives to them is
computed once, as is what an item gives; a pair costs their sum, and the rest of the experts that it chose.
"""

from recsys_moe.scoring.blend import Blend
from recsys_moe.scoring.block import USER_SIDES, Precision
from recsys_moe.scoring.candidates import ForAll
from recsys_moe.scoring.diversity import Diversity
from recsys_moe.scoring.top_n import TopN, score_top_n

__all__ = ["USER_SIDES", "Blend", "Diversity", "ForAll", "Precision", "TopN", "score_top_n"]
