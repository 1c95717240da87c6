"""Which items are scored for which user, and why: made once for a scoring, then read shard by shard."""

from pipelines.scoring.candidates.shared import Shared, of_users
from pipelines.scoring.candidates.user_candidates import Everything, UserCandidates

__all__ = ["Everything", "Shared", "UserCandidates", "of_users"]
