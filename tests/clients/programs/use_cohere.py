"""cohere: rerank, versions 1 and 2."""

import sys

import cohere

url, _, embedder = sys.argv[1:]
TEXTS = ["The moon causes tides.", "Tides are caused by the moon.", "Bread is baked."]
client = cohere.ClientV2(api_key="none", base_url=url)
ranked = client.rerank(model="bm25", query="what causes tides", documents=TEXTS, top_n=2)
assert [one.index for one in ranked.results] == [0, 1]
assert cohere.Client(api_key="none", base_url=url).rerank(model=embedder, query="tides", documents=TEXTS).results
