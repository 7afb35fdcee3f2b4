"""What AdminService says of online learning."""

from heliotrope.v1 import admin_pb2 as pb
from heliotrope_server.learning.leader import Leader
from heliotrope_server.learning.online import OnlineLearning
from heliotrope_server.learning.validation import Verdict
from heliotrope_server.learning.weights import distance


def add_shard_fields(status: pb.ShardStatus, learning: OnlineLearning) -> None:
    """The part that every shard knows of itself."""
    status.weights_version = learning.weights_version
    status.remembered_answer_count = len(learning.memory)
    status.feedback_count = learning.feedback_count
    leader = learning.leader
    status.waiting_example_count = learning.outbox_size if leader is None else leader.learner.waiting_count
    status.lost_example_count = learning.lost_count if leader is None else leader.dropped_count


def learning_status(learning: OnlineLearning | None, leader_index: int) -> pb.LearningStatus | None:
    """What the leader knows; on another shard, that it is another. None when nothing is learned."""
    if learning is None or learning.keeper is None:
        return None
    status = pb.LearningStatus(leader_shard_index=leader_index)
    if learning.leader is not None:
        _add_leader_fields(status, learning.leader)
        status.stale_count += learning.stale_count
        keeper = learning.keeper
        status.snapshot_version = keeper.catalogue.version
        status.weights_version = keeper.active.version
        for version in status.versions:
            version.active = version.weights_version == keeper.active.version
            version.withdrawn = version.weights_version in keeper.pointer.withdrawn
    return status


def _add_leader_fields(status: pb.LearningStatus, leader: Leader) -> None:
    learner = leader.learner
    status.leader_reachable = True
    status.example_count = learner.example_count
    status.over_quota_count = learner.over_quota_count
    status.stale_count = leader.stale_count
    status.discard_count = learner.discard_count
    status.shadow.CopyFrom(_comparison(learner.shadow_verdict))
    if learner.previous_verdict is not None:
        status.previous.CopyFrom(_comparison(learner.previous_verdict))
    status.shadow_change = distance(learner.shadow_weights(), learner.anchor)
    for promotion in leader.promotions:
        version = status.versions.add(
            weights_version=promotion.version,
            parent_weights_version=promotion.parent,
            comparison=_comparison(promotion.verdict),
        )
        version.create_time.FromMilliseconds(round(promotion.time_s * 1000))


def _comparison(verdict: Verdict) -> pb.WeightsComparison:
    comparison = pb.WeightsComparison(
        example_count=verdict.examples,
        user_count=verdict.users,
        active_log_loss=verdict.defender_loss,
        other_log_loss=verdict.challenger_loss,
        standard_error=verdict.gain.standard_error,
    )
    if verdict.off_policy is not None:
        comparison.active_off_policy_log_loss = verdict.defender_off_policy_loss
        comparison.other_off_policy_log_loss = verdict.challenger_off_policy_loss
        comparison.off_policy_standard_error = verdict.off_policy.standard_error
    return comparison
