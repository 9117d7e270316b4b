"""The page of `edlm benchmark quality`: a table of samples and their cost, and one of bounds."""

from edlm_hf.benchmarks.tables import Column, estimate, number, rounded, steps, table, text

CAVEAT = (
    "Generative perplexity means nothing without the entropy beside it: lower entropy lowers it. A bound of an energy "
    "above that of MDLM says nothing against the sampler: it is loose, less so for larger m."
)
SAME_JUDGE = (
    "The judge is the AR model of the study, which favours the arms that use it as their energy: read with care."
)


def markdown(result: dict) -> str:
    """The page of a result."""
    facts = result["environment"]
    settings = result["settings"]
    seeds = ", ".join(map(str, settings["seeds"]))

    # More than one machine where parts of an earlier command were found. Texts have no hardware
    hardware_of_rows = [row.get("hardware", ()) for row in result["samples"]]
    measured_on = sorted({name for names in hardware_of_rows for name in names})

    # Without a judge the AR model judges, given by its own name or inside the composite
    judge = settings["judge"]
    caveats = CAVEAT
    if not judge:
        judge = f"{settings['autoregressive'] or settings['model']} (the AR model, its own tokens)"
        caveats = f"{CAVEAT} {SAME_JUDGE}"

    lines = [
        "# Quality of samplers at equal work",
        "",
        f"{facts['date']}, torch {facts['torch']}, transformers {facts['transformers']}. Model {settings['model']}, "
        f"L = {result['length']}, k = {settings['num_candidates']}, w = {settings['window']}, seeds {seeds}. "
        f"Seconds are those of {'; '.join(measured_on)}, in batches of {settings['batch_size']}, {settings['dtype']}.",
        "",
        f"`{facts['command']}`",
        "",
        f"Gen-PPL under {judge}. {caveats}",
        "",
        "Samples, ± one standard error. Calls, GFLOP and seconds are per sample; GFLOP count every call as a whole "
        "forward pass (k of them for the energy); calls of AR are of one token each. sd(E) in nats and the effective "
        "sample size (ESS, of k) are means over steps.",
        "",
        table(SAMPLE_COLUMNS, result["samples"]),
        "",
        f"Bounds of the negative log-likelihood (AR: exact) of at most {settings['num_texts']} texts per set, ± the "
        "standard error of the noise. Less MDLM: nats/token of the largest m minus those of MDLM at the same T, on the "
        "same texts and noise, ± the standard error over texts of that difference.",
        "",
        bound_table(result),
    ]
    return "\n".join(lines) + "\n"


def mean_over_steps(name: str) -> Column:
    """The column of the mean of a value over steps, each step counted as often as it was taken."""

    def column(row: dict) -> str:
        profile = row.get("profile")
        if not profile:
            return "-"

        num_samples = sum(step["num_samples"] for step in profile)
        weighted = sum(step[name] * step["num_samples"] for step in profile)
        return f"{weighted / num_samples:.2f}"

    return column


steps_of_arm = steps(is_limit=lambda row: row.get("arm") == "MDLM")

SAMPLE_COLUMNS = {
    "samples": text("samples"),
    "T": steps_of_arm,
    "n": text("num_samples"),
    "Gen-PPL": estimate("generative_perplexity"),
    "entropy (bits)": estimate("unigram_entropy"),
    "word entropy (bits)": estimate("word_entropy"),
    "distinct bigrams": estimate("distinct_2"),
    "known words": estimate("known_words"),
    "denoiser calls": estimate("denoiser_calls"),
    "energy calls": estimate("energy_calls"),
    "sd(E) (nats)": mean_over_steps("energy_sd"),
    "ESS": mean_over_steps("effective_sample_size"),
    "GFLOP": number("gigaflops_per_sample"),
    "seconds": number("seconds_per_sample"),
}


def bound_table(result: dict) -> str:
    """A row for every set of texts, arm and T, with a column for each number m of inner copies."""
    copies = result["settings"]["inner_copies"]
    most = max(copies)
    smaller = [m for m in copies if m != most]

    # Smaller m in columns of their own: they show how much of the gap to MDLM is looseness
    columns = {
        "data": text("data"),
        "arm": text("arm"),
        "T": steps_of_arm,
        "bound": text("bound"),
    }
    for m in smaller:
        columns[f"nats/token, m = {m}"] = nats_with_copies(result["bounds"], m)
    columns[f"nats/token, m = {most} or none"] = estimate("nats_per_token")
    columns["bits/char"] = estimate("bits_per_character")
    columns["less MDLM"] = estimate("minus_mdlm")

    # A line for the largest m. The sort is stable: within a set of texts the order of the arms stays
    rows = [row for row in result["bounds"] if row["inner_copies"] in (None, most)]
    return table(columns, sorted(rows, key=lambda row: row["data"]))


def nats_with_copies(bounds: list[dict], copies: int) -> Column:
    """The column of the bound with another number of inner copies, a dash where there is none."""
    of_copies = {}
    for bound in bounds:
        if bound["inner_copies"] == copies:
            of_copies[sampler_and_data(bound)] = bound["nats_per_token"]

    def column(row: dict) -> str:
        key = sampler_and_data(row)
        return rounded(of_copies[key]) if key in of_copies else "-"

    return column


def sampler_and_data(row: dict) -> tuple:
    return row["data"], row["arm"], row["steps"]


__all__ = ["markdown"]
