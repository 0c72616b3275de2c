"""A job's share of the silos, as a person sees it."""

from anabranch.v1 import admin_pb2
from console import board, documents
from tests.console.test_watch import look, shown, status


def test_a_share_is_shown_with_its_reason() -> None:
    share = admin_pb2.Share(leases=6, active=5, why="score 1.42")
    text = shown(board.board(look(status(share=share)), every_silo=True))
    assert "share of the silos 6, at work 5  (score 1.42)" in text


def test_where_jobs_take_turns_there_is_no_share() -> None:
    assert "share of the silos" not in shown(board.board(look(status()), every_silo=True))


def test_a_share_is_part_of_the_document() -> None:
    share = admin_pb2.Share(leases=6, active=5, why="score 1.42")
    assert documents.job(status(share=share))["share"] == {"leases": 6, "active": 5, "why": "score 1.42"}
    assert documents.job(status())["share"] is None
