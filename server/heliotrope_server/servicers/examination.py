"""The reply of Explain."""

from heliotrope.v1 import recommendation_pb2 as pb
from heliotrope_server.examiner import Examination, Examined
from heliotrope_server.servicers.reply import encode_response


def explain_response(examination: Examination) -> pb.ExplainResponse:
    return pb.ExplainResponse(
        response=pb.RecommendResponse.FromString(encode_response(examination.answer)),
        items=[_item(item) for item in examination.items],
        eligible_count=examination.eligible,
    )


def _item(item: Examined) -> pb.ItemExplanation:
    return pb.ItemExplanation(
        item_id=item.item_id,
        score=item.score,
        probability=item.probability,
        explanation=[pb.Contribution(**part._asdict()) for part in item.contributions],
        place=item.place,
        rank=item.rank,
        first_pass_rank=item.first_pass_rank,
        absences=[
            pb.Absence(
                kind=pb.AbsenceKind.ValueType(absence.kind),
                score_gap=absence.score_gap,
                condition_index=absence.condition,
            )
            for absence in item.absences
        ],
        counterfactuals=[pb.Counterfactual(**one._asdict()) for one in item.counterfactuals],
    )
