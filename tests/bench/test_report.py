"""What the benchmarks write into their README."""

from __future__ import annotations

from bench.report import replace


def test_what_is_measured_anew_replaces_its_section_and_nothing_else(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(
        "# Top\n\n## Results\n\nold\n\n**a table**\n\n## vLLM\n\nwords\n\n### Measured\n\nold, too\n\n## Last\n\nend\n"
    )
    replace(readme, "## Results", "new\n")
    replace(readme, "### Measured", "newer")
    assert readme.read_text() == "# Top\n\n## Results\n\nnew\n\n## vLLM\n\nwords\n\n### Measured\n\nnewer\n\n## Last\n\nend\n"
    replace(readme, "## Last", "the end")
    assert readme.read_text().endswith("### Measured\n\nnewer\n\n## Last\n\nthe end\n")
