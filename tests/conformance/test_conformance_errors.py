"""How a call fails: typed errors, status codes, failures of the handler, arguments that do not fit."""

import copy
import pickle
from typing import Any, cast

import pytest
from conformance_api import Api, BadShape, Echo, Fussy, NotToday, Point, shrunk
from conformance_transports import Transport, on_every_transport

import shmrpc
from shmrpc import Code

pytest_plugins = ["conformance_plugin"]


async def assert_alive(api: Api) -> None:
    """The connection carries calls, whatever happened before."""
    assert await api.place(1, 2) == "1 2 none 1.0"


@on_every_transport
async def test_a_declared_error_arrives_as_itself_with_its_fields(api: Api) -> None:
    with pytest.raises(BadShape) as caught:
        await api.refuse_shape((3, 4), "transpose it")
    error = caught.value
    assert type(error) is BadShape
    assert (error.shape, error.centre, error.hint) == ((3, 4), Point(1, 2), "transpose it")
    assert error.code is Code.INVALID_ARGUMENT
    assert str(error) == "BadShape(shape=(3, 4), centre=Point(x=1, y=2), hint='transpose it')"


@on_every_transport
async def test_an_error_that_arrived_can_be_pickled_and_copied(api: Api) -> None:
    with pytest.raises(BadShape) as caught:
        await api.refuse_shape((3,), "none")
    for again in (pickle.loads(pickle.dumps(caught.value)), copy.copy(caught.value)):
        assert (type(again), str(again)) == (BadShape, str(caught.value))


@on_every_transport
async def test_a_declared_error_with_a_text_arrives_as_itself_whatever_its_constructor_takes(api: Api) -> None:
    with pytest.raises(NotToday) as caught:
        await api.refuse_today(7)
    assert (type(caught.value), str(caught.value)) == (NotToday, "not on day 7")
    assert caught.value.code is Code.FAILED_PRECONDITION


@on_every_transport
async def test_a_declared_error_keeps_a_code_that_its_handler_set(api: Api) -> None:
    with pytest.raises(NotToday) as caught:
        await api.refuse_today(7, code=Code.ABORTED)
    assert caught.value.code is Code.ABORTED


@on_every_transport
async def test_an_error_with_a_code_arrives_with_its_code_and_text(api: Api) -> None:
    for code in Code:
        if code is not Code.OK:
            with pytest.raises(shmrpc.RpcError, match=r"^as asked$") as caught:
                await api.refuse_with(code, "as asked")
            assert caught.value.code is code


@on_every_transport
async def test_a_code_that_has_a_class_arrives_as_that_class(api: Api) -> None:
    for expected in (
        shmrpc.InvalidArgument,
        shmrpc.DeadlineExceeded,
        shmrpc.Cancelled,
        shmrpc.ResourceExhausted,
        shmrpc.PermissionDenied,
        shmrpc.Unimplemented,
        shmrpc.Internal,
        shmrpc.Unavailable,
    ):
        with pytest.raises(shmrpc.RpcError) as caught:
            await api.refuse_with(expected.code, "as asked")
        assert type(caught.value) is expected


@on_every_transport
async def test_what_a_handler_raised_had_been_executed(api: Api) -> None:
    with pytest.raises(shmrpc.Unavailable) as caught:
        await api.refuse_with(Code.UNAVAILABLE, "out of order")
    assert caught.value.maybe_executed


@on_every_transport
async def test_an_error_text_that_is_no_text_does_not_hurt(api: Api) -> None:
    with pytest.raises(shmrpc.RpcError, match=r"^cannot read caf") as caught:
        await api.refuse_path(b"caf\xe9")
    assert str(caught.value) == "cannot read caf\\udce9"


@on_every_transport
async def test_any_other_failure_is_internal_and_leaks_nothing(api: Api) -> None:
    with pytest.raises(shmrpc.Internal) as caught:
        await api.break_down("the password is swordfish")
    assert caught.value.code is Code.INTERNAL
    assert caught.value.correlation_id
    assert caught.value.correlation_id in str(caught.value)
    for leak in ("swordfish", "ValueError"):
        assert leak not in str(caught.value)
    assert caught.value.__cause__ is None
    await assert_alive(api)


@on_every_transport
async def test_each_failure_has_a_correlation_id_of_its_own(api: Api) -> None:
    seen = set()
    for _ in range(3):
        with pytest.raises(shmrpc.Internal) as caught:
            await api.break_down("again")
        seen.add(caught.value.correlation_id)
    assert len(seen) == 3


@on_every_transport
async def test_a_server_in_debug_mode_says_what_failed(transport: Transport) -> None:
    async with transport.connect_debug() as api:
        with pytest.raises(shmrpc.Internal, match="ValueError: swordfish"):
            await api.break_down("swordfish")


@on_every_transport
async def test_a_result_that_cannot_be_encoded_is_internal(api: Api) -> None:
    with pytest.raises(
        shmrpc.Internal, match=r"Api.give_what_cannot_be_encoded: its result cannot be encoded"
    ) as caught:
        await api.give_what_cannot_be_encoded()
    assert caught.value.correlation_id
    await assert_alive(api)


@on_every_transport
async def test_a_result_that_does_not_fit_the_contract_is_internal(api: Api) -> None:
    with pytest.raises(shmrpc.Internal, match=r"Api.give_what_does_not_fit: .*result does not fit.*`int`, got `str`"):
        await api.give_what_does_not_fit()
    await assert_alive(api)


@on_every_transport
async def test_whatever_a_type_raises_when_it_is_read_is_an_error_of_that_call_only(api: Api) -> None:
    with pytest.raises(shmrpc.InvalidArgument, match=r"Api\.take_fussy: .*-1"):
        await api.take_fussy(shrunk())
    with pytest.raises(shmrpc.Internal, match=r"Api\.give_what_will_not_be_read: .*result does not fit.*-1"):
        await api.give_what_will_not_be_read()
    assert await api.take_fussy(Fussy(3)) == 3


@on_every_transport
async def test_a_handler_that_cancels_itself_is_cancelled(api: Api) -> None:
    with pytest.raises(shmrpc.Cancelled, match=r"Api.cancel_itself"):
        await api.cancel_itself()
    await assert_alive(api)


@on_every_transport
async def test_a_call_with_the_wrong_arguments_names_the_parameter(api: Api) -> None:
    wrong = cast(Any, api)
    for call, text in (
        (wrong.place, "missing a required argument: 'x'"),
        (lambda: wrong.place(1, 2, "here"), "too many positional arguments"),
        (lambda: wrong.place(1, z=2), "unexpected keyword argument 'z'"),
        (lambda: wrong.place(1, x=1), "multiple values for argument 'x'"),
        (lambda: wrong.place("one"), "parameter 'x': Expected `int`, got `str`"),
        (lambda: wrong.place(1, scale="big"), "parameter 'scale': Expected `float`, got `str`"),
        (lambda: wrong.measure(["one", 2]), r"parameter 'texts'\[1\]: Expected `str`, got `int`"),
        (lambda: wrong.place(object()), "parameter 'x' cannot be encoded"),
        (lambda: wrong.place(1 << 64), "parameter 'x' cannot be encoded"),
        (lambda: wrong.measure(["\ud800"]), "parameter 'texts' cannot be encoded"),
    ):
        with pytest.raises(shmrpc.InvalidArgument, match=f"Api.*{text}") as caught:
            await call()
        assert isinstance(caught.value, TypeError)
        assert caught.value.code is Code.INVALID_ARGUMENT
        await assert_alive(api)


@on_every_transport
async def test_a_value_outside_its_enumeration_is_refused(transport: Transport) -> None:
    async with transport.connect(Echo) as echo:
        with pytest.raises(shmrpc.InvalidArgument, match="parameter 'value': Invalid enum value 'blue'"):
            await echo.colour(cast(Any, "blue"))
