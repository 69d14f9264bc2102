"""What the replies of all engine servers with token ids have in common."""

from __future__ import annotations

from agentrl.engines.contract import Generation
from agentrl.episode import EMPTY_IDS, EMPTY_LOGPROBS, IntArray, Sampling, Version, digest_ids


def is_greedy(sampling: Sampling) -> bool:
    """Greedy requests give log-probs at temperature 1, whatever their temperature."""
    return sampling.temperature == 0 or sampling.top_k == 1


def told_version(policy: str, text: str) -> Version:
    """A server's weight version (a string) as ours; what is no version of this policy (a start-up name) becomes step 0 of
    lineage `server`."""
    try:
        version = Version.parse(text)
    except ValueError:
        return Version("server", policy, 0, text)
    return version if version.policy == policy and str(version) == text else Version("server", policy, 0, text)


def no_tokens(prompt: IntArray) -> Generation:
    """What a request gives that was aborted before the server saw it."""
    return Generation(EMPTY_IDS, EMPTY_LOGPROBS, (), "abort", digest_ids(prompt))
