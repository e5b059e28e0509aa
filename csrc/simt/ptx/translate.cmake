# PTX to C++ by tools/ptx. Included by ../CMakeLists.txt.
find_program(XLSTM_PYTHON python3 REQUIRED)
set(xlstm_python ${CMAKE_COMMAND} -E env PYTHONPATH=${xlstm_root} PYTHONDONTWRITEBYTECODE=1 ${XLSTM_PYTHON})
file(GLOB ptx_translator CONFIGURE_DEPENDS ${xlstm_root}/tools/ptx/*.py ${xlstm_root}/tools/ptx/instructions/*.py)
set(ptx_parts 8)  # C++ files of a PTX file, so that they compile side by side

# How translated code is compiled: nothing contracted, integers wrap, registers change their types.
add_library(ptx_code INTERFACE)
target_include_directories(ptx_code INTERFACE ${xlstm_root}/csrc)
target_include_directories(ptx_code SYSTEM INTERFACE ${XLSTM_CUDA_INCLUDE})
target_compile_options(ptx_code INTERFACE -Og -march=x86-64-v3 -ffp-contract=off -fno-math-errno -fno-strict-aliasing -fwrapv
                                          -fstack-clash-protection -w)

# Appends the C++ files of a PTX file to the list of this name.
function(xlstm_translate_ptx list ptx)
  cmake_path(GET ptx PARENT_PATH folder)
  cmake_path(GET ptx STEM LAST_ONLY stem)
  set(files)
  math(EXPR last "${ptx_parts} - 1")
  foreach(part RANGE ${last})
    list(APPEND files ${folder}/${stem}.${part}.cpp)
  endforeach()
  add_custom_command(
    OUTPUT ${files}
    COMMAND ${xlstm_python} -m tools.ptx ${ptx} --output ${folder} --parts ${ptx_parts}
    DEPENDS ${ptx} ${ptx_translator}
    VERBATIM)
  set(${list} ${${list}} ${files} PARENT_SCOPE)
endfunction()
