"""ProfileService."""

from collections.abc import AsyncIterator
from typing import Any

import grpc

from heliotrope.v1 import event_pb2, profile_pb2_grpc
from heliotrope.v1 import profile_pb2 as pb
from heliotrope_server.byte_gate import ByteGate
from heliotrope_server.engine import Engine, check_segments
from heliotrope_server.errors import InvalidArgumentError
from heliotrope_server.event import UserEvent, check_id
from heliotrope_server.profile import Profile
from heliotrope_server.servicers.routing import Router, part_s, passed_on, relayed

UPDATABLE = ("declared_interests", "segments")


class ProfileServicer(profile_pb2_grpc.ProfileServiceServicer):
    """`gate` bounds the texts that wait for this shard's encoder."""

    def __init__(self, engine: Engine, router: Router, gate: ByteGate) -> None:
        self._engine = engine
        self._router = router
        self._gate = gate

    async def GetProfile(self, request: pb.GetProfileRequest, context: Any) -> pb.GetProfileResponse:
        check_id("user_id", request.user_id)
        owner = self._router.owner(request.user_id)
        if owner is not None:
            return await passed_on(
                owner, owner.profiles.GetProfile(request, timeout=part_s(context), wait_for_ready=True)
            )
        time_s = request.read_time.ToNanoseconds() / 1e9 if request.HasField("read_time") else None
        return pb.GetProfileResponse(profile=self._message(self._engine.profile(request.user_id), time_s))

    async def UpdateProfile(self, request: pb.UpdateProfileRequest, context: Any) -> pb.UpdateProfileResponse:
        check_id("user_id", request.user_id)
        owner = self._router.owner(request.user_id)
        if owner is not None:
            return await passed_on(
                owner, owner.profiles.UpdateProfile(request, timeout=part_s(context), wait_for_ready=True)
            )
        fields = set(request.update_mask.paths) or set(UPDATABLE)
        for name in sorted(fields):
            if name not in UPDATABLE:
                raise InvalidArgumentError(
                    "INVALID_UPDATE_MASK", f"update_mask names {name[:64]!r}; there are {' and '.join(UPDATABLE)}"
                )
        # Both are checked before one is stored.
        check_segments(request.segments)
        if "declared_interests" in fields:
            with self._gate.hold(request.ByteSize()):
                await self._engine.declare(request.user_id, list(request.declared_interests))
        if "segments" in fields:
            await self._engine.set_segments(request.user_id, list(request.segments))
        return pb.UpdateProfileResponse(profile=self._message(self._engine.profile(request.user_id)))

    async def DeleteProfile(self, request: pb.DeleteProfileRequest, context: Any) -> pb.DeleteProfileResponse:
        check_id("user_id", request.user_id)
        owner = self._router.owner(request.user_id)
        if owner is not None:
            return await passed_on(
                owner, owner.profiles.DeleteProfile(request, timeout=part_s(context), wait_for_ready=True)
            )
        return pb.DeleteProfileResponse(deleted_event_count=await self._engine.forget(request.user_id))

    async def ExportProfile(
        self, request: pb.ExportProfileRequest, context: Any
    ) -> AsyncIterator[pb.ExportProfileResponse]:
        check_id("user_id", request.user_id)
        owner = self._router.owner(request.user_id)
        if owner is not None:
            call = owner.profiles.ExportProfile(request, timeout=part_s(context), wait_for_ready=True)
            try:
                async for part in call:
                    yield part
            except grpc.aio.AioRpcError as error:
                raise relayed(owner, error) from error
            return
        profile = self._engine.profile(request.user_id)
        events = sorted(profile.events.values(), key=lambda event: (event.time_us, event.event_id))
        yield pb.ExportProfileResponse(profile=self._message(profile))
        for event in events:
            yield pb.ExportProfileResponse(event=event_message(event))

    def _message(self, profile: Profile, time_s: float | None = None) -> pb.Profile:
        parameters = self._engine.catalogue.parameters
        at_s = self._engine.now_s() if time_s is None else time_s
        masses = profile.total.masses_at(profile.read_time_s(at_s), parameters.half_lives_s)
        vectors = profile.interest_vectors(at_s, parameters)
        return pb.Profile(
            user_id=profile.user_id,
            interest_vectors=[
                pb.InterestVector(half_life_s=half_life_s, mass=mass, values=vector)
                for half_life_s, mass, vector in zip(parameters.half_lives_s, masses, vectors, strict=True)
            ],
            remembered_event_count=len(profile.events),
            folded_event_count=profile.folded_count,
            folded_share=profile.folded_share(parameters),
            declared_interests=profile.declared_interests,
            segments=profile.segments,
            version_token=self._engine.clock.token(profile.lsn),
        )


def event_message(event: UserEvent) -> event_pb2.Event:
    message = event_pb2.Event(
        event_id=event.event_id,
        user_id=event.user_id,
        item_id=event.item_id,
        type=event.kind,  # type: ignore[arg-type]
        value=event.value,
    )
    message.event_time.FromMicroseconds(event.time_us)
    return message
