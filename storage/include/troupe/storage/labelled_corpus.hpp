// troupe/storage/labelled_corpus.hpp -- texts and the class of each, most to train on and some held
// out.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "troupe/engine/config.hpp"
#include "troupe/engine/expected.hpp"
#include "troupe/storage/token_file.hpp"

namespace troupe::storage {

/// A text of a labelled corpus.
struct LabelledText {
  TokenView text;           ///< At least one token.
  std::uint32_t label = 0;  ///< Of `LabelledCorpus::class_names`.
};

/// A table of tab-separated values (IANA: text/tab-separated-values): a line that names the
/// columns, then a line for each text, with as many fields. A line ends with LF or CRLF, and no
/// field holds a tab or the end of a line: nothing is quoted or escaped.
///
///     label    text                                 group
///     Law      In the beginning God created ...     Genesis 1
///
/// The columns `label` and `text` must be there, and may stand anywhere; others than these three
/// are ignored. Texts of one `group` are never divided into some to train on and some held out;
/// without that column each is a group of its own.
///
/// Held out are the groups that come first in an order that `train.seed` draws, until they have at
/// least floor(texts * `data.validation_fraction`) texts. The classes are the labels that occur, in
/// the order of their bytes.
class LabelledCorpus {
public:
  /// Opens `data.text` for a model that classifies.
  /// @returns what `TokenFile::open` returns; `invalid_file` naming the line where the table is not
  ///          what is said above, or a text or label is empty; `invalid_file` if all texts are of
  ///          one class, if fewer are left to train on than a step takes, or none of a class, and
  ///          if the fraction is not 0 but holds nothing out; `invalid_config` if `model.classes`
  ///          is not the number of classes.
  [[nodiscard]] static Expected<LabelledCorpus> open(const Config& config);

  [[nodiscard]] const std::vector<std::string>& class_names() const noexcept {
    return class_names_;
  }
  /// In the order of the file. What they point to is valid as long as this corpus, also when it has
  /// moved.
  [[nodiscard]] std::span<const LabelledText> training() const noexcept { return training_; }
  /// In an order that the seed draws, so that the first of them speak for all; none if nothing is
  /// held out.
  [[nodiscard]] std::span<const LabelledText> validation() const noexcept { return validation_; }

  /// Equal for equal files; see `TokenFile::fingerprint`.
  [[nodiscard]] std::string fingerprint() const { return file_.fingerprint(); }

private:
  explicit LabelledCorpus(TokenFile file) noexcept : file_{std::move(file)} {}

  TokenFile file_;
  std::vector<std::string> class_names_;
  std::vector<LabelledText> training_;
  std::vector<LabelledText> validation_;
};

}  // namespace troupe::storage
