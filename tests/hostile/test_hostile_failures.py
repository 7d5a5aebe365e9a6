"""Failures that are no failures: unknown codes, fields that do not fit, texts without end. Only their call is concerned."""

import pytest
from hostile_stage import against_client, encode
from raw_channel import FAILURE, IN_BLOCK

import shmrpc

pytestmark = pytest.mark.counted("bad inputs tried")


@pytest.mark.parametrize("code", [0, 17, 99, -1, 1 << 60, (1 << 64) - 1])
async def test_a_failure_of_an_unknown_code_is_a_failure_all_the_same(
    path: str, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with against_client(path, caplog) as scene:
        call, call_id = await scene.call(scene.life.add(1))
        scene.channel.send(FAILURE, encode((code, "who knows")), call_id=call_id)
        with pytest.raises(shmrpc.RpcError, match="who knows") as caught:
            await call
        assert caught.value.code == shmrpc.Code.UNKNOWN
        await scene.must_go_on()


@pytest.mark.parametrize(
    "type_",
    ["Grumpy", "Life", "Keeper", "RpcError", "ConnectionLost", "SystemExit", "KeyboardInterrupt", "os", "", "\n"],
)
async def test_the_name_of_an_error_makes_nothing_that_the_contract_does_not_declare(
    path: str, type_: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with against_client(path, caplog) as scene:
        call, call_id = await scene.call(scene.life.add(1))
        scene.channel.send(FAILURE, encode((3, "who knows", type_, b"\x91" * 5000, "id", False)), call_id=call_id)
        with pytest.raises(shmrpc.InvalidArgument, match="who knows"):
            await call
        await scene.must_go_on()


async def test_a_text_of_any_length_ends_its_call_and_is_not_logged(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    giant = "no\n" * 100_000
    async with against_client(path, caplog) as scene:
        call, call_id = await scene.call(scene.life.add(1))
        payload = encode((3, giant))
        scene.channel.put(0, payload)
        scene.channel.send(FAILURE, encode((0, 1, len(payload))), call_id=call_id, flags=IN_BLOCK)
        with pytest.raises(shmrpc.InvalidArgument) as caught:
            await call
        assert str(caught.value) == giant
        await scene.must_go_on()
        assert caplog.text == ""
