"""`llm-proxy gateway rotate-key` while the gateway serves: nobody notices, and the new key is in force at once."""

import asyncio
import json

from openai import AsyncOpenAI

from tests.gatewaybed import Gateway


async def test_a_rotation_while_calls_go_on(start, command, fake):
    """Keys sealed before are used, new ones are sealed, with no restart; the file holds one key afterwards."""
    allowed = {"LLM_PROXY_UPSTREAMS_ALLOW": fake.url}

    def furnished():
        gateway = Gateway(start("gateway", "--port", "0", env=allowed)).wait()
        provider = gateway.provider("openai", f"{fake.url}/v1")
        gateway.alias("fast", "gpt-4o-mini", provider)
        return gateway, gateway.key()

    gateway, key = await asyncio.to_thread(furnished)
    kept = gateway.daemon.home / ".local/share/llm-proxy/gateway/secrets.json"
    before = json.loads(kept.read_text())
    assert kept.stat().st_mode & 0o777 == 0o600
    async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0) as client:

        async def call(model):
            said = await client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hello"}])
            return said.choices[0].message.content

        words = await call("fast")
        done = await asyncio.to_thread(command, "gateway", "rotate-key")
        assert done.returncode == 0 and "encrypted with the new key: 1 now, 0 before" in done.stdout, done
        after = json.loads(kept.read_text())
        assert after["encryption_key"] != before["encryption_key"] and "old_encryption_keys" not in after
        assert after["jwt_secret"] == before["jwt_secret"]
        assert await call("fast") == words

        def one_more():
            gateway.alias("more", "gpt-4o-mini", gateway.provider("openai", f"{fake.url}/v1"))

        await asyncio.to_thread(one_more)
        assert await call("more") == words
    check = await asyncio.to_thread(command, "gateway", "check")
    assert check.returncode == 0 and "WRONG" not in check.stdout, check.stdout
